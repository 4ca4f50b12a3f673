//! What is changed while the daemon runs: by files, by hand, and back.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::{Lab, refused, stderr};

const RS2: &str =
    "[[service.server]] # the second\nname = \"rs2\"\naddress = \"10.0.0.12:8080\"\nweight = 5 # five\n";

impl Lab {
    /// Runs a command that must succeed. Returns what it prints.
    fn done(&self, words: &str) -> String {
        let words: Vec<_> = words.split_whitespace().collect();
        let output = self.shunt(&words);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Weight and state of every server of "web" that is in force.
    fn web(&self) -> Vec<(u64, String)> {
        let servers = self.status()["services"][0]["servers"].as_array().unwrap().clone();
        let of = |server: &Value| {
            (server["weight"].as_u64().unwrap(), server["state"].as_str().unwrap().to_owned())
        };
        servers.iter().map(of).collect()
    }

    fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap()
    }
}

fn is(weight: u64, state: &str) -> (u64, String) {
    (weight, state.to_owned())
}

#[test]
fn a_reload_says_what_is_in_force_and_a_diff_says_it_before() {
    let mut lab = Lab::new("diff");
    lab.start();
    let next = lab.folder.join("next.toml");
    let text =
        std::fs::read_to_string(lab.file()).unwrap().replace("local =", "scheduler = \"mh\"\nlocal =") + RS2;
    std::fs::write(&next, &text).unwrap();
    let before = lab.generation();
    let diff = lab.done(&format!("diff {}", next.display()));
    assert_eq!(diff, "service web: scheduler: wlc -> mh\nservice web: server rs2: added\n");
    assert_eq!(lab.generation(), before, "nothing has changed");
    std::fs::write(lab.file(), &text).unwrap();
    let said = lab.done("reload");
    let expected = format!("in force: generation {}, 2 changes, ", before + 1);
    assert!(said.starts_with(&expected) && said.ends_with(" ms\n"), "{said}");
    let lighter = text.replace("weight = 5", "weight = 1").replace("[api]", "[engine]\nworkers = 2\n[api]");
    std::fs::write(&next, lighter).unwrap();
    let diff = lab.done(&format!("diff {}", next.display()));
    let lines: Vec<_> = diff.lines().collect();
    assert_eq!(lines[0], "service web: server rs2: weight: 5 -> 1");
    // From one sixth to one half.
    assert_eq!(lines[1], "service web: 33.3 % of the Maglev table moves");
    assert_eq!(lines[2], "refused while running: [engine] cannot change without a restart");
    assert_eq!(lab.done(&format!("diff {}", lab.file().display())), "no difference\n");
    std::fs::write(&next, "[[service]]\nnaem = 7\n").unwrap();
    refused(&lab.shunt(&["diff", next.to_str().unwrap()]), "next.toml:2:1");
    for event in ["cause=\"reload\"", "service=\"web\" server=\"rs2\" what=\"added\""] {
        lab.logs(event);
    }
}

#[test]
fn servers_and_services_are_changed_by_hand_and_a_reload_goes_back_to_the_file() {
    let mut lab = Lab::new("edit");
    lab.configure(RS2);
    lab.start();
    lab.done("server weight web rs2 7");
    lab.done("server drain web 10.0.0.11:8080");
    assert_eq!(lab.web(), [is(0, "draining"), is(7, "enabled")]);
    lab.done("server disable web rs2");
    assert_eq!(lab.web(), [is(0, "draining"), is(0, "disabled")]);
    lab.done("server enable web 10.0.0.11:8080");
    lab.done("server enable web rs2");
    assert_eq!(lab.web(), [is(1, "enabled"), is(7, "enabled")], "with the weights they had");
    lab.done("server add web 10.0.0.13:8080 name=rs3 weight=2");
    lab.done("server remove web rs2");
    assert_eq!(lab.web(), [is(1, "enabled"), is(2, "enabled")]);
    lab.done("service add dns protocol=udp mode=dr listen=203.0.113.53:53");
    lab.done("server add dns 10.0.0.11");
    assert!(lab.addresses().contains("203.0.113.53"), "{}", lab.addresses());
    // What is shown loads back, and is what is in force.
    let shown = lab.folder.join("shown.toml");
    std::fs::write(&shown, lab.done("config show")).unwrap();
    assert_eq!(lab.done(&format!("diff {}", shown.display())), "no difference\n");
    lab.done("service remove dns");
    assert!(!lab.addresses().contains("203.0.113.53"), "{}", lab.addresses());
    let before = lab.generation();
    for (words, why) in [
        ("server weight web rs9 1", "service \"web\" has no server \"rs9\""),
        ("server weight wbe rs1 1", "there is no service \"wbe\""),
        ("server weight web rs3 70000", "must be 0 to 65535"),
        ("server add web 10.0.0.300:80", "octet 300 is out of range"),
        ("server add web 10.0.0.14:80 wieght=1", "did you mean `weight`?"),
        ("service add web protocol=tcp listen=203.0.113.11:80", "is the name of another service"),
    ] {
        refused(&lab.shunt(&words.split_whitespace().collect::<Vec<_>>()), why);
    }
    assert_eq!(lab.generation(), before, "what is refused changes nothing");
    let reload = lab.shunt(&["reload"]);
    assert!(
        stderr(&reload).contains("was edited since the files were read, and not saved, is gone"),
        "{reload:?}"
    );
    assert_eq!(lab.web(), [is(1, "enabled"), is(5, "enabled")]);
}

#[test]
fn a_saved_edit_changes_its_line_of_its_file_and_nothing_else() {
    let mut lab = Lab::new("save");
    lab.configure("");
    let main = format!("include = [\"more/*.toml\"]\n{}", std::fs::read_to_string(lab.file()).unwrap());
    std::fs::write(lab.file(), &main).unwrap();
    let more = lab.folder.join("more/a.toml");
    let text = |weight| {
        format!(
            "# Kept by hand.\n[[service]]\nname = \"more\"\nprotocol = \"tcp\"\nmode = \"dr\"\nlisten = [\"203.0.113.11:80\"]\n\
             [[service.server]]\nname = \"rs1\"\naddress = \"10.0.0.11\"\nweight = {weight} # share\n"
        )
    };
    std::fs::create_dir(lab.folder.join("more")).unwrap();
    std::fs::write(&more, text(1)).unwrap();
    std::fs::set_permissions(&more, std::fs::Permissions::from_mode(0o640)).unwrap();
    lab.start();
    lab.done("server weight more rs1 3 --save");
    assert_eq!(std::fs::read_to_string(&more).unwrap(), text(3));
    assert_eq!(std::fs::metadata(&more).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_to_string(lab.file()).unwrap(), main);
    assert_eq!(std::fs::read_dir(lab.folder.join("more")).unwrap().count(), 1, "nothing lies beside it");
    let shown = lab.done("config show");
    assert!(shown.contains("weight = 3 # share") && !shown.contains("include"), "{shown}");
    // Somebody else writes it meanwhile: nothing is lost, and nothing half-done.
    std::fs::write(&more, text(4)).unwrap();
    let before = lab.generation();
    refused(&lab.shunt(&["server", "weight", "more", "rs1", "9", "--save"]), "was changed since it was read");
    assert_eq!((lab.generation(), std::fs::read_to_string(&more).unwrap()), (before, text(4)));
    lab.done("reload");
    lab.done("server weight more rs1 5");
    assert_eq!(std::fs::read_to_string(&more).unwrap(), text(4), "in force alone");
    assert_eq!(lab.done("config save"), "1 files written\n");
    assert_eq!(std::fs::read_to_string(&more).unwrap(), text(5));
    // A file that belongs to somebody else would not any more.
    std::fs::set_permissions(&more, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&more, Some(65534), Some(65534)).unwrap();
    let before = lab.generation();
    refused(&lab.shunt(&["server", "weight", "more", "rs1", "6", "--save"]), "Operation not permitted");
    assert_eq!((lab.generation(), std::fs::read_to_string(&more).unwrap()), (before, text(5)));
    assert_eq!(std::fs::read_dir(lab.folder.join("more")).unwrap().count(), 1, "nothing lies beside it");
}

#[test]
fn a_rollback_goes_to_what_was_in_force_before_step_by_step() {
    let mut lab = Lab::new("rollback");
    lab.start();
    refused(&lab.shunt(&["rollback"]), "no other configuration was in force since the start");
    lab.configure(RS2);
    lab.done("reload");
    lab.done("reload");
    lab.done("server weight web rs2 9");
    assert_eq!(lab.web(), [is(1, "enabled"), is(9, "enabled")]);
    lab.done("rollback");
    assert_eq!(lab.web(), [is(1, "enabled"), is(5, "enabled")]);
    lab.done("rollback");
    assert_eq!(lab.web(), [is(1, "enabled")], "the reload that changed nothing is no step");
    refused(&lab.shunt(&["rollback"]), "no other configuration");
    lab.done("reload");
    assert_eq!(lab.web(), [is(1, "enabled"), is(5, "enabled")], "the file was left alone");
}
