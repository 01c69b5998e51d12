//! Tables on the terminal.

use std::io::IsTerminal as _;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table without lines, for lists: a heading in capitals, columns apart.
pub(crate) fn list(heading: &[&str]) -> Table {
    let mut table = plain();
    table.set_header(heading.iter().map(|word| word.to_uppercase()));
    table
}

/// A table without lines and without a heading.
pub(crate) fn plain() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = terminal_columns() {
        table.set_width(width);
    }
    table
}

/// Puts numbers in these columns to the right; to be called when the table is filled.
pub(crate) fn align_right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The lines of a table: columns two blanks apart, none at the ends.
pub(crate) fn render(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// How wide the terminal is that reads our output; none where there is no terminal.
fn terminal_columns() -> Option<u16> {
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(stdout).ok()?;
    (size.ws_col >= 20).then_some(size.ws_col)
}
