//! `scheduler` and the keys that say more about it. What a scheduler makes no use of is an error: whoever wrote it expected
//! something else.

use shunt_dataplane::scheduler::{HashKind, Scheduler, SchedulerKind, mh};
use toml::Spanned;

use super::Server;
use super::diagnostic::Diagnostics;
use super::raw::{self, Number, Typed};
use super::resolve::{integer, list, number, word};
use super::words::Word;

/// What `scheduler`, `scheduler_flags`, `hash`, `seed` and `mh_slots` of the service called `name` mean together.
pub(super) fn scheduler(name: &str, typed: &raw::Service, diagnostics: &mut Diagnostics) -> Scheduler {
    let key = |key: &str| format!("service {name:?}: {key}");
    let kind = word(&key("scheduler"), &typed.scheduler, SchedulerKind::Wlc, diagnostics);
    let mut scheduler = Scheduler::from(kind);
    for flag in typed.scheduler_flags.iter().flat_map(|flags| flags.as_ref()) {
        match flag_of(kind, &key("scheduler_flags"), flag, diagnostics) {
            Some(Flag::Port) => scheduler.port = true,
            Some(Flag::Fallback) => scheduler.fallback = true,
            None => {}
        }
    }
    used_by(kind, SchedulerKind::maps, &key("hash"), &typed.hash, diagnostics);
    scheduler.hash = word(&key("hash"), &typed.hash, HashKind::Keyed, diagnostics);
    used_by(kind, has_seed, &key("seed"), &typed.seed, diagnostics);
    if let Some(seed) = &typed.seed {
        if scheduler.hash == HashKind::Kernel {
            let label = "the kernel's hash has none";
            diagnostics.error(seed.span(), format!("{}: not with hash = \"kernel\"", key("seed")), label);
        }
        let none = &Some(seed.clone());
        scheduler.seed = Some(integer(&key("seed"), none, 0, 0..=i64::MAX, diagnostics));
    }
    used_by(kind, |kind| kind == SchedulerKind::Mh, &key("mh_slots"), &typed.mh_slots, diagnostics);
    scheduler.mh_slots = mh_slots(&key("mh_slots"), scheduler.hash, &typed.mh_slots, diagnostics);
    scheduler
}

#[derive(Clone, Copy)]
enum Flag {
    Port,
    Fallback,
}

const FLAGS: [(&str, SchedulerKind, Flag); 4] = [
    ("sh-port", SchedulerKind::Sh, Flag::Port),
    ("sh-fallback", SchedulerKind::Sh, Flag::Fallback),
    ("mh-port", SchedulerKind::Mh, Flag::Port),
    ("mh-fallback", SchedulerKind::Mh, Flag::Fallback),
];

fn flag_of(
    kind: SchedulerKind,
    key: &str,
    typed: &Spanned<String>,
    diagnostics: &mut Diagnostics,
) -> Option<Flag> {
    let text = typed.as_ref().as_str();
    let Some(&(_, of, flag)) = FLAGS.iter().find(|(word, ..)| *word == text) else {
        let known = format!("known are {}", list(FLAGS.iter().map(|(word, ..)| *word)));
        diagnostics.error(typed.span(), format!("{key}: unknown flag {text:?}"), "unknown flag").help(known);
        return None;
    };
    if of != kind {
        let message = format!("{key}: {text:?} is not possible with scheduler {:?}", kind.word());
        diagnostics.error(typed.span(), message, format!("a flag of {:?}", of.word()));
        return None;
    }
    Some(flag)
}

/// Notes an error when something is said that the scheduler makes no use of.
fn used_by<T>(
    kind: SchedulerKind,
    uses: impl Fn(SchedulerKind) -> bool,
    key: &str,
    typed: &Typed<T>,
    diagnostics: &mut Diagnostics,
) {
    if let Some(typed) = typed.as_ref().filter(|_| !uses(kind)) {
        let message = format!("{key} is not possible with scheduler {:?}", kind.word());
        let users = SchedulerKind::ALL.into_iter().filter(|&kind| uses(kind)).map(Word::word);
        diagnostics
            .error(typed.span(), message, "it has no use for this")
            .help(format!("possible with {}", list(users)));
    }
}

/// Whether something about the scheduler begins somewhere, or is hashed.
fn has_seed(kind: SchedulerKind) -> bool {
    kind.maps() || matches!(kind, SchedulerKind::Rr | SchedulerKind::Wrr | SchedulerKind::Twos)
}

fn mh_slots(key: &str, hash: HashKind, typed: &Typed<Number>, diagnostics: &mut Diagnostics) -> u32 {
    let (default, kernels) = match hash {
        HashKind::Keyed => (mh::SLOTS, true),
        HashKind::Kernel => (mh::KERNEL_SLOTS, false),
    };
    let allowed = || mh::SLOTS_ALLOWED.into_iter().filter(move |&slots| kernels || slots != mh::SLOTS);
    let (Some(value), Some(typed)) = (number(key, typed, diagnostics), typed) else { return default };
    allowed().find(|&slots| i64::from(slots) == value).unwrap_or_else(|| {
        let numbers: Vec<_> = allowed().map(|slots| slots.to_string()).collect();
        let message = format!("{key}: {} is not possible", typed.as_ref());
        let help = format!("possible are {}", list(numbers.iter().map(String::as_str)));
        diagnostics.error(typed.span(), message, "not one of the sizes").help(help);
        default
    })
}

/// Notes an error when a table of `mh` has fewer slots than there are `servers` of one family: some would get nobody.
pub(super) fn check_slots(
    name: &str,
    typed: &raw::Service,
    scheduler: &Scheduler,
    servers: &[Server],
    diagnostics: &mut Diagnostics,
) {
    let v4 = servers.iter().filter(|server| server.address.is_ipv4()).count();
    let (most, slots) = (v4.max(servers.len() - v4), scheduler.mh_slots);
    let said = typed.mh_slots.as_ref().map(Spanned::span);
    let span = said.or_else(|| typed.scheduler.as_ref().map(Spanned::span));
    if let Some(span) = span.filter(|_| scheduler.kind == SchedulerKind::Mh && most > slots as usize) {
        let message = format!("service {name:?}: mh_slots: {slots} are too few for {most} servers");
        diagnostics
            .error(span, message, "every server needs a slot, and a hundred to get its share")
            .help("the more slots, the closer each server's share is to its weight");
    }
}

/// The scheduler as people write it, with its flags: `sh (sh-port)`.
pub fn describe(scheduler: &Scheduler) -> String {
    let is_set = |flag: Flag| match flag {
        Flag::Port => scheduler.port,
        Flag::Fallback => scheduler.fallback,
    };
    let flags = FLAGS.iter().filter(|(_, of, flag)| *of == scheduler.kind && is_set(*flag));
    let mut words: Vec<_> = flags.map(|(word, ..)| *word).collect();
    if scheduler.hash == HashKind::Kernel {
        words.push("kernel hash");
    }
    match words.as_slice() {
        [] => scheduler.kind.word().to_owned(),
        words => format!("{} ({})", scheduler.kind.word(), words.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_is_described_with_its_flags_as_ipvsadm_does() {
        let sh = Scheduler { fallback: true, port: true, ..SchedulerKind::Sh.into() };
        assert_eq!(describe(&sh), "sh (sh-port,sh-fallback)");
        assert_eq!(describe(&SchedulerKind::Wlc.into()), "wlc");
        let mh = Scheduler { hash: HashKind::Kernel, ..SchedulerKind::Mh.into() };
        assert_eq!(describe(&mh), "mh (kernel hash)");
    }
}
