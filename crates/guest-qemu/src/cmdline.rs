//! The command line of a QEMU that runs, turned into a configuration that starts its like elsewhere.

use std::fs;
use std::io;

use crate::args::{Arg, has_option, join, key_values, options, parse_size, value_of};
use crate::spec::{QemuConfig, is_memory_backend};

/// QEMU's RAM size when nobody gives one.
const DEFAULT_RAM_BYTES: u64 = 128 << 20;
/// Options that are of this run or this host only, and vmferry's own.
const DROPPED: &[&str] = &[
    "qmp",
    "qmp-pretty",
    "mon",
    "monitor",
    "incoming",
    "daemonize",
    "pidfile",
    "S",
    "D",
    "name",
    "no-user-config",
    "nouserconfig",
];
/// Displays that need a screen.
const WINDOWS: &[&str] = &["gtk", "sdl", "cocoa", "curses", "default"];

/// The arguments of process `pid`, without the program's name.
pub(crate) fn read(pid: u32) -> io::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    let text = |arg: &[u8]| String::from_utf8_lossy(arg).into_owned();
    let mut args: Vec<String> = bytes.split(|&byte| byte == 0).skip(1).map(text).collect();
    args.pop();
    Ok(args)
}

/// The configuration of a guest that `binary` runs with `args`; the error says what cannot be carried over.
pub(crate) fn to_config(binary: &str, args: &[String]) -> Result<QemuConfig, String> {
    let main = options(args)
        .filter(|arg| ["machine", "M"].contains(&arg.name))
        .find_map(|arg| value_of(arg.value?, "memory-backend"));
    let is_numa =
        options(args).any(|arg| arg.name == "numa" && arg.value.is_some_and(|v| v.contains("memdev=")));
    if main.is_none() && !is_numa {
        return Err(
            "its RAM is not shared: restart it with -object memory-backend-file,id=ram0,size=SIZE,\
                    mem-path=/dev/shm/NAME,share=on -machine memory-backend=ram0, or by `vmferry run`"
                .into(),
        );
    }
    let mut config = QemuConfig::new(ram_bytes(args), [""; 0]);
    config.binary = binary.to_owned();
    config.default_devices = !has_option(args, &["nodefaults"]);
    if let Some(main) = &main {
        config.ram_id.clone_from(main);
    }
    let monitors = monitor_chardevs(args);
    let all: Vec<Arg<'_>> = options(args).collect();
    for arg in all {
        config.args.extend(carried_over(arg, main.as_deref(), &monitors));
    }
    Ok(config)
}

/// What of an option starts the same guest on another host.
fn carried_over(arg: Arg<'_>, main: Option<&str>, monitors: &[String]) -> Vec<String> {
    let whole = |value: &str| vec![format!("-{}", arg.name), value.to_owned()];
    let without = |value: &str, keys: &[&str]| {
        let kept: Vec<_> = key_values(value)
            .into_iter()
            .filter(|(key, _)| !keys.contains(&key.as_str()))
            .collect();
        if kept.is_empty() {
            Vec::new()
        } else {
            whole(&join(&kept))
        }
    };
    let id_is = |value: &str, id: Option<&str>| id.is_some() && value_of(value, "id").as_deref() == id;
    match (arg.name, arg.value) {
        (name, _) if DROPPED.contains(&name) => Vec::new(),
        (_, None) => vec![format!("-{}", arg.name)],
        ("m", Some(value)) => without(value, &["", "size"]),
        ("machine" | "M", Some(value)) => without(value, &["memory-backend"]),
        ("object", Some(value)) if is_memory_backend(arg) && id_is(value, main) => Vec::new(),
        ("chardev", Some(value)) if monitors.iter().any(|id| id_is(value, Some(id))) => Vec::new(),
        ("display", Some(value)) if WINDOWS.iter().any(|window| value.starts_with(window)) => Vec::new(),
        (_, Some(value)) => whole(value),
    }
}

/// Ids of the character devices that only monitors use.
fn monitor_chardevs(args: &[String]) -> Vec<String> {
    let of = |arg: Arg<'_>| {
        let value = arg.value?;
        match arg.name {
            "mon" => value_of(value, "chardev").or_else(|| value_of(value, "")),
            "qmp" | "qmp-pretty" | "monitor" => Some(value.strip_prefix("chardev:")?.to_owned()),
            _ => None,
        }
    };
    options(args).filter_map(of).collect()
}

fn ram_bytes(args: &[String]) -> u64 {
    let size = |value: &str| value_of(value, "size").or_else(|| value_of(value, ""));
    options(args)
        .filter(|arg| arg.name == "m")
        .filter_map(|arg| parse_size(&size(arg.value?)?, 1 << 20))
        .last()
        .unwrap_or(DEFAULT_RAM_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<QemuConfig, String> {
        let args: Vec<String> = line.split_whitespace().map(String::from).collect();
        to_config("qemu-system-x86_64", &args)
    }

    #[test]
    fn only_the_guest_is_carried_over() {
        let config = config(
            "-machine q35,memory-backend=mem0,usb=off -accel tcg -m 256,slots=2,maxmem=1G -smp 2 -nodefaults \
             -object memory-backend-memfd,id=mem0,size=256M,share=on \
             -chardev socket,id=c0,path=/run/q.sock,server=on,wait=off -mon chardev=c0,mode=control \
             -qmp unix:/run/p.sock,server=on,wait=off -monitor none -pidfile /run/p.pid -daemonize -S \
             -display gtk -name x -drive file=/a.img,if=virtio -no-reboot",
        )
        .unwrap();
        assert_eq!((config.memory_bytes, config.ram_id.as_str()), (256 << 20, "mem0"));
        assert!(!config.default_devices);
        assert_eq!(
            config.args.join(" "),
            "-machine q35,usb=off -accel tcg -m slots=2,maxmem=1G -smp 2 -nodefaults -drive file=/a.img,if=virtio \
             -no-reboot"
        );
        assert!(QemuConfig::from_spec(&config.into_spec("vm")).is_ok());
    }

    #[test]
    fn ram_without_a_backend_is_refused() {
        let problem = config("-machine q35 -m 256").unwrap_err();
        assert!(
            problem.contains("memory-backend-file") && problem.contains("share=on"),
            "{problem}"
        );
    }
}
