//! C files for the compile load: made here, like those of a large program in kind. Every file includes the same long header of types,
//! macros and inline functions, and has functions of its own with loops, switches, tables and calls across files.

use std::fmt::Write as _;

/// How many files; one pass of the load compiles each once. Few, so that soon there is a first result to compare with.
const FILES: u32 = 32;
const HEADER: &str = "all.h";
/// Types that the header declares.
const TYPES: u32 = 60;
/// Functions that each file defines: few, because an emulated processor takes a second for two.
const FUNCTIONS: u32 = 2;

/// Name and content of each file, the same every time.
pub(crate) fn write() -> Vec<(String, String)> {
    let mut files = vec![(HEADER.to_owned(), header())];
    files.extend((0..FILES).map(|file| (format!("part{file:02}.c"), part(file))));
    files
}

fn header() -> String {
    let mut text = String::from(
        "#ifndef ALL_H\n#define ALL_H\ntypedef unsigned long u64;\ntypedef unsigned int u32;\n\
         typedef unsigned char u8;\n\
         #define ROTATE(x, n) (((x) << (n)) | ((x) >> (64 - (n))))\n\
         #define CLAMP(x, low, high) ((x) < (low) ? (low) : (x) > (high) ? (high) : (x))\n",
    );
    for number in 0..TYPES {
        let (words, bytes) = (1 + number % 5, 4 + number % 29);
        let _ = write!(
            text,
            "struct item{number} {{\n\tstruct item{number} *next;\n\tu64 words[{words}];\n\tu32 flags;\n\tu8 name[{bytes}];\n}};\n\
             enum state{number} {{ START{number}, BUSY{number}, WAITS{number}, FAILED{number}, DONE{number} }};\n\
             static inline u64 item{number}_sum(const struct item{number} *item)\n{{\n\tu64 sum = item->flags;\n\
             \tfor (u32 i = 0; i < {words}; i++)\n\t\tsum = ROTATE(sum, {rotate}) ^ item->words[i];\n\treturn sum;\n}}\n",
            rotate = 3 + number % 40,
        );
    }
    for file in 0..FILES {
        for function in 0..FUNCTIONS {
            let _ = writeln!(text, "u64 part{file}_{function}(void *at, u64 value, u32 count);");
        }
    }
    text.push_str("#endif\n");
    text
}

fn part(file: u32) -> String {
    let mut text = format!("#include \"{HEADER}\"\n\nstatic const u64 table{file}[] = {{");
    for entry in 0..64 {
        let _ = write!(
            text,
            " 0x{:x}ul,",
            u64::from(file * 64 + entry + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        );
    }
    text.push_str(" };\n");
    for function in 0..FUNCTIONS {
        let item = (file * 7 + function * 13) % TYPES;
        let (other, callee) = ((file + function + 1) % FILES, (function + 1) % FUNCTIONS);
        let _ = write!(
            text,
            "\nstatic enum state{item} step{function}(enum state{item} state, struct item{item} *item, u64 value)\n{{\n\
             \tswitch (state) {{\n\
             \tcase START{item}:\n\t\titem->flags = (u32)value;\n\t\treturn value & 1 ? BUSY{item} : WAITS{item};\n\
             \tcase BUSY{item}:\n\t\titem->words[0] += table{file}[value % 64];\n\t\treturn value % 3 ? WAITS{item} : DONE{item};\n\
             \tcase WAITS{item}:\n\t\titem->flags ^= CLAMP((u32)value, 16, 4096);\n\t\treturn value % 5 ? BUSY{item} : FAILED{item};\n\
             \tcase FAILED{item}:\n\t\titem->name[value % sizeof item->name] ^= (u8)value;\n\t\treturn START{item};\n\
             \tdefault:\n\t\treturn DONE{item};\n\t}}\n}}\n\n\
             u64 part{file}_{function}(void *at, u64 value, u32 count)\n{{\n\
             \tstruct item{item} *item = at;\n\tenum state{item} state = START{item};\n\tu64 sum = value;\n\n\
             \tfor (u32 i = 0; i < count && item; i++, item = item->next) {{\n\
             \t\tfor (u32 j = 0; j < 64; j++)\n\t\t\tsum += table{file}[j] * (value ^ j);\n\
             \t\tstate = step{function}(state, item, sum);\n\
             \t\tsum ^= item{item}_sum(item);\n\
             \t\tif (state == FAILED{item} && count > 1)\n\t\t\tsum += part{other}_{callee}(item->next, sum, count / 2);\n\
             \t}}\n\treturn sum;\n}}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn they_are_many_and_always_the_same() {
        let files = write();
        assert_eq!(files, write());
        assert_eq!(files.len(), FILES as usize + 1);
    }

    #[test]
    fn a_compiler_takes_them() {
        let folder = std::env::temp_dir().join(format!("xtask-sources-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in write().into_iter().take(4) {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let mut compiler = Command::new("gcc");
        compiler.args([
            "-Wall", "-Wextra", "-Werror", "-O1", "-c", "part00.c", "part01.c", "part02.c",
        ]);
        match compiler.current_dir(&folder).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{said}");
            }
            Err(_) => eprintln!("skipped: gcc is not installed"),
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
