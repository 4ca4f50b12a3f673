//! The machine a figure is of.

use serde::Serialize;
use shunt_engine::mem::Pages;

/// What a reader must know of the machine to judge a figure.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor, as the kernel names it.
    pub cpu: String,
    /// Cores this process may run on.
    pub cores: usize,
    /// The core the worker is pinned to, if it could be.
    pub core: Option<usize>,
    /// The kernel's release.
    pub kernel: String,
    /// Reserved huge pages of the machine (`vm.nr_hugepages`).
    pub huge_pages_reserved: u64,
    /// The kernel's setting for transparent huge pages.
    pub transparent_huge_pages: String,
}

impl Machine {
    /// Asks the kernel, and pins the calling thread to the last of its cores.
    pub fn prepare() -> Self {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        let core = cores.last().copied().filter(|&core| core_affinity::set_for_current(core));
        Self {
            cpu: cpu(&read("/proc/cpuinfo")),
            cores: cores.len(),
            core: core.map(|core| core.id),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            huge_pages_reserved: read("/proc/sys/vm/nr_hugepages").trim().parse().unwrap_or(0),
            transparent_huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        }
    }
}

/// The cores the calling thread may run on.
pub fn cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// Has the calling thread run on `core` alone, if that can be had.
pub fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// The word for what memory lies on.
pub const fn pages(pages: Pages) -> &'static str {
    match pages {
        Pages::Huge => "huge",
        Pages::Normal => "normal",
    }
}

/// Bytes of this process that lie in memory.
pub fn resident() -> u64 {
    let pages =
        read("/proc/self/statm").split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// How often the kernel has taken the core from the thread `tid` of this process so far.
pub fn switches(tid: i32) -> u64 {
    let status = read(&format!("/proc/self/task/{tid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Time of all cores so far: what the host gave to others although they had work (`steal`), and all of it.
pub fn stolen() -> (u64, u64) {
    shares(&read("/proc/stat"))
}

/// The eighth figure of the first line, and the sum of the first eight: proc_stat(5).
fn shares(stat: &str) -> (u64, u64) {
    let line = stat.lines().next().unwrap_or_default();
    let figures: Vec<u64> =
        line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
    (figures.get(7).copied().unwrap_or(0), figures.iter().sum())
}

/// The content of a file, empty when it cannot be read: not every kernel has every file.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn cpu(cpuinfo: &str) -> String {
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':'])).into()
}

/// The word in brackets of a kernel's choice: `always [madvise] never`.
fn chosen(choice: &str) -> String {
    let word = choice.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or("unknown", |(word, _)| word).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "unknown");
        assert_eq!(cpu("processor\t: 0\nmodel name\t: AMD EPYC 9R14\n"), "AMD EPYC 9R14");
        assert_eq!(cpu(""), "unknown");
        assert_eq!(shares("cpu  10 1 2 80 3 0 1 3 7 0\ncpu0 5 0 1 40 2 0 0 2 3 0\n"), (3, 100));
        assert_eq!(shares(""), (0, 0));
    }
}
