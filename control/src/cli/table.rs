//! Tables for people.

/// Lines of cells, each column as wide as its widest cell.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns aligned to the left; the others are numbers.
    left: usize,
}

impl Table {
    pub(super) fn new(left: usize, head: &[&str]) -> Self {
        let mut table = Self { rows: Vec::new(), left };
        table.row(head.iter().map(ToString::to_string));
        table
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                let width = widths[column];
                let cell =
                    if column < self.left { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
                line.push_str(gap);
                line.push_str(&cell);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `1536` as `1536`, `2097152` as `2.0M`: the units of ipvsadm's rates, base 1024.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = "";
    for next in units {
        if value < 10_240.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit.is_empty() { bytes.to_string() } else { format!("{value:.1}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_are_on_the_right() {
        let mut table = Table::new(1, &["Name", "Count", "Last"]);
        table.row(["longer", "1", "2"].map(str::to_owned));
        table.row(["x", "12345678"].map(str::to_owned));
        assert_eq!(table.text(), "Name       Count  Last\nlonger         1     2\nx       12345678\n");
    }

    #[test]
    fn numbers_of_bytes_are_short_enough_to_read() {
        assert_eq!(
            [bytes(0), bytes(10_239), bytes(20_480), bytes(52_428_800)],
            ["0", "10239", "20.0K", "50.0M"]
        );
    }
}
