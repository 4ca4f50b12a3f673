//! The command as it is typed: what it prints, and what it says about bad input.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shunt-bench")).args(arguments).output().expect("cargo has built it")
}

#[test]
fn json_has_one_run_per_mode_and_number_of_flows() {
    let few = ["--flows", "1,300", "--packets", "4000", "--rounds", "2"];
    let output = bench(&[&["pipeline", "--json"][..], &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"]["cores"].as_u64().unwrap() > 0);
    let runs = report["runs"].as_array().unwrap();
    let seen: Vec<_> =
        runs.iter().map(|run| (run["mode"].as_str().unwrap(), run["flows"].as_u64().unwrap())).collect();
    let modes = ["fullnat", "nat", "dr", "tun"];
    assert_eq!(seen, modes.iter().flat_map(|&mode| [(mode, 1), (mode, 300)]).collect::<Vec<_>>());
    for run in runs {
        for figure in ["ns_per_packet", "baseline_ns", "mpps"] {
            assert!(run[figure].as_f64().unwrap() > 0.0, "{figure}: {run}");
        }
        let share = run["cpu_share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share), "{run}");
        let replies = matches!(run["mode"].as_str().unwrap(), "fullnat" | "nat");
        assert_eq!(run["reply_share"].as_f64().unwrap(), if replies { 0.5 } else { 0.0 });
        assert_eq!((run["frame_bytes"].as_f64(), run["family"].as_str()), (Some(64.0), Some("ipv4")));
    }
}

#[test]
fn frames_of_all_lengths_pass_in_all_modes_and_both_ip_versions() {
    let few = ["--families", "ipv4,ipv6", "--frames", "64,1500,imix", "--flows", "50", "--packets", "2000"];
    let output = bench(&[&["pipeline", "--json", "--rounds", "1"][..], &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4 * 2 * 3);
    for run in runs {
        let shortest = if run["family"] == "ipv6" { 74.0 } else { 64.0 };
        let bytes = match run["frames"].as_str().unwrap() {
            "64" => shortest,
            "1500" => 1500.0,
            _ => (7.0 * shortest + 4.0 * 576.0 + 1500.0) / 12.0,
        };
        assert!((run["frame_bytes"].as_f64().unwrap() - bytes).abs() < 0.01, "{run}");
        assert!(run["wall_ns"].as_f64().unwrap() > 0.0, "{run}");
    }
}

#[test]
fn as_many_connections_end_as_open_whatever_the_mode_and_the_scheduler() {
    let few = ["--servers", "3,20", "--open", "2000", "--connections", "6400", "--rounds", "2"];
    let what = ["--modes", "fullnat,dr", "--schedulers", "wlc,mh"];
    let output = bench(&[&["connect", "--json"][..], &what, &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let text = |run: &serde_json::Value, key: &str| run[key].as_str().unwrap().to_owned();
    let seen: Vec<_> = runs
        .iter()
        .map(|run| (text(run, "mode"), text(run, "scheduler"), run["servers"].as_u64().unwrap()))
        .collect();
    let mut expected = Vec::new();
    for mode in ["fullnat", "dr"] {
        for scheduler in ["wlc", "mh"] {
            expected.extend([3, 20].map(|servers| (mode.to_owned(), scheduler.to_owned(), servers)));
        }
    }
    assert_eq!(seen, expected);
    for run in runs {
        for figure in ["ns_per_connection", "baseline_ns", "million_per_second", "time_lapse"] {
            assert!(run[figure].as_f64().unwrap() > 0.0, "{figure}: {run}");
        }
        assert_eq!(run["opened"], 12_800);
        assert!(run["expired"].as_u64().unwrap().abs_diff(12_800) <= 640, "{run}");
        assert!(run["open"].as_u64().unwrap().abs_diff(2000) <= 100, "{run}");
        assert_eq!((&run["syn_recv_s"], &run["time_wait_s"]), (&60.into(), &120.into()));
        let fullnat = run["mode"] == "fullnat";
        assert_eq!(run["local_addresses"].as_u64().unwrap(), if fullnat { 64 } else { 0 });
    }
}

#[test]
fn a_connection_costs_at_most_128_bytes_and_with_ipv6_192() {
    let output = bench(&["table", "--json", "--connections", "3000,20000", "--rounds", "1"]);
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        let bytes_max = if run["family"] == "ipv4" { 128.0 } else { 192.0 };
        let bytes = run["bytes_per_connection"].as_f64().unwrap();
        assert!(bytes > 64.0 && bytes <= bytes_max, "{run}");
        for costs in [&run["table"], &run["hashbrown"]] {
            for figure in ["hit_ns", "miss_ns", "insert_ns", "delete_ns"] {
                assert!(costs[figure].as_f64().unwrap() > 0.0, "{figure}: {run}");
            }
        }
    }
}

#[test]
fn two_workers_share_the_packets_and_hand_them_to_each_other() {
    let few = ["--flows", "100", "--packets", "4000", "--rounds", "1", "--modes", "fullnat,dr"];
    let output = bench(&[&["scale", "--json", "--families", "ipv4,ipv6"][..], &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        for figure in ["one_ns", "all_ns", "handed_ns", "times_cpu", "times_wall", "baseline_times_wall"] {
            assert!(run[figure].as_f64().unwrap() > 0.0, "{figure}: {run}");
        }
    }
}

#[test]
fn latency_is_measured_at_each_load_and_once_more_with_reloads() {
    let few = ["--millis", "200", "--loads", "10,50", "--flows", "100", "--services", "20"];
    let output = bench(&[&["latency", "--json"][..], &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let loads: Vec<_> = runs.iter().map(|run| run["load"].as_u64().unwrap()).collect();
    assert_eq!(loads, [10, 50, 50]);
    for run in runs {
        let quantile = |of: &str, which: &str| run[of][which].as_u64().unwrap();
        for of in ["residence", "with_wait"] {
            let all = ["p50", "p99", "p999", "max"].map(|which| quantile(of, which));
            assert!(all[0] > 0 && all.is_sorted(), "{run}");
        }
        assert!(quantile("residence", "p50") <= quantile("with_wait", "p50"), "{run}");
        assert!((0.0..1.0).contains(&run["excluded"].as_f64().unwrap()), "{run}");
    }
    assert!(runs[1]["reloads"].is_null() && runs[2]["reloads"].as_u64().unwrap() > 0, "{runs:?}");
}

#[test]
fn a_reload_is_measured_from_the_file_to_the_workers() {
    let few = ["--services", "20", "--servers", "5", "--rounds", "1", "--workers", "2"];
    let output = bench(&[&["reload", "--json"][..], &few].concat());
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let seen: Vec<_> = runs
        .iter()
        .map(|run| (run["scheduler"].as_str().unwrap(), run["change"].as_str().unwrap()))
        .collect();
    let changes = ["everything", "nothing", "one server, file", "one server, edit"];
    assert_eq!(
        seen,
        ["wlc", "mh"].iter().flat_map(|&kind| changes.map(|change| (kind, change))).collect::<Vec<_>>()
    );
    for run in runs {
        assert!(
            run["compile_cpu_ms"].as_f64().unwrap() > 0.0 && run["in_force_ms"].as_f64().unwrap() > 0.0,
            "{run}"
        );
    }
    let compile = |number: usize| runs[number]["compile_cpu_ms"].as_f64().unwrap();
    assert!(compile(4) > 3.0 * compile(5), "unchanged tables are shared: {runs:?}");
}

#[test]
fn packets_pass_as_often_as_valgrind_is_to_count_them() {
    for case in
        ["baseline", "fullnat_ipv4", "tun_ipv6", "dr_ipv4_new", "miss_ipv4", "not_ours_ipv6", "handoff_ipv4"]
    {
        let output = bench(&["count", "--case", case, "--times", "2"]);
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn bad_input_is_refused_with_a_message_that_names_it() {
    for (arguments, names) in [
        (&["pipeline", "--modes", "fullnat,half"][..], "no such forwarding mode"),
        (&["pipeline", "--flows", "0"], "1..=10000000"),
        (&["pipeline", "--frames", "64,65x"], "65x"),
        (&["pipeline", "--frames", "1501"], "or imix"),
        (&["pipeline", "--families", "ipv5"], "ipv5"),
        (&["pipeline", "--flows", "many"], "many"),
        (&["pipeline", "--packets", "-1"], "-1"),
        (&["pipeline", "--quick", "--flows", "5"], "--quick"),
        (&["table", "--connections", "0"], "1..=10000000"),
        (&["connect", "--schedulers", "wlc,lifo"], "no such scheduler"),
        (&["connect", "--open", "10"], "1000..=10000000"),
        (&["scale", "--workers", "1"], "2..=64"),
        (&["latency", "--loads", "96"], "1..=95"),
        (&["reload", "--schedulers", "least"], "no such scheduler"),
        (&["count", "--case", "fullnat"], "no such case"),
        (&["count", "--times", "2"], "--case"),
        (&["pipelines"], "pipelines"),
    ] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(names), "{arguments:?}: {message}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
