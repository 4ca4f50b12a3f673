//! The helpers other tests stand on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Netns, Veth, veth_pair};

#[test]
fn a_namespace_has_its_own_links_and_is_gone_after_a_panic() {
    let name = std::panic::catch_unwind(|| {
        let netns = Netns::new("guard");
        let left = Veth { netns: &netns, name: "left", mac: [2, 0, 0, 0, 0, 1] };
        let right = Veth { netns: &netns, name: "right", mac: [2, 0, 0, 0, 0, 2] };
        veth_pair(left, right, 1500, 2);
        assert!(netns.run("ip", &["-o", "link"]).contains("02:00:00:00:00:02"));
        let routes = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        assert!(routes.contains("left:"));
        std::panic::panic_any(netns.name().to_owned());
    })
    .unwrap_err();
    let name = name.downcast::<String>().unwrap();
    assert!(!std::path::Path::new("/run/netns").join(*name).exists());
}

#[test]
fn namespaces_of_a_killed_test_run_are_removed_by_the_next() {
    let orphan = "shunt-4294967295-0-orphan";
    common::run("ip", &["netns", "add", orphan]);
    common::remove_orphans();
    assert!(!std::path::Path::new("/run/netns").join(orphan).exists());
}
