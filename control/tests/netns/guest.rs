//! A machine with a kernel of its own at the lab's switch: Debian's `user-mode-linux`, booted on the host's own files.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::lab::{Lab, within};

/// A running guest. Dropping it switches it off.
pub(crate) struct Guest(Child);

/// What every guest does first: its modules and its only interface, `vec0`.
const BEGIN: &str = r#"#!/bin/bash
set -e
trap 'echo "the guest failed in line $LINENO"' ERR
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/root/lib/modules
ln -s "/usr/lib/uml/modules/$(uname -r)" /run/root/lib/modules/
ip link set lo up
ip link set vec0 up
"#;

const END: &str = "\necho 'the guest is ready'\nwhile :; do sleep 1000; done\n";

impl Guest {
    /// Boots a guest at a port of the lab's switch and waits until it has run `script` (as root, with
    /// `modprobe -d /run/root` for the kernel's modules).
    pub(crate) fn boot(lab: &Lab, script: &str) -> Self {
        lab.sh("switch", "ip tuntap add dev uml mode tap; ip link set uml up master back");
        let init = lab.folder().join("init");
        std::fs::write(&init, format!("{BEGIN}{script}{END}")).unwrap();
        std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).unwrap();
        let console = lab.folder().join("console.log");
        let guest = Command::new("ip")
            .args(["netns", "exec", &lab.namespace("switch"), "linux.uml", "mem=128M", "rootfstype=hostfs"])
            .args([
                "rootflags=/",
                "ro",
                "vec0:transport=tap,ifname=uml,depth=64",
                "con=null",
                "con0=fd:0,fd:1",
                "ssl=null",
            ])
            .arg(format!("init={}", init.display()))
            .env("HOME", lab.folder())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&console).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let guest = Self(guest);
        within(Duration::from_secs(30), "the guest boots", || {
            let text = String::from_utf8_lossy(&std::fs::read(&console).unwrap()).into_owned();
            assert!(!text.contains("the guest failed"), "{text}");
            text.contains("the guest is ready")
        });
        guest
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
