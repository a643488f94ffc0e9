//! The control API over its socket: every route, what is refused and how, and hostile clients.

use crate::support::{HANG, Swarm, has_fields, is_report, request, send, signal};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;

#[test]
fn the_socket_is_for_its_owner_only() {
    let swarm = Swarm::deploy(&json!({}));
    let mode =
        |path: &std::path::Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    let socket = swarm.place.socket();
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().expect("a folder")), 0o700);
    assert_eq!(mode(&swarm.place.beside("state/ai_swarm").join(swarm.place.name())), 0o700);
    for name in swarm.place.segments() {
        let segment = std::fs::metadata(std::path::Path::new("/dev/shm").join(&name)).expect("it is there");
        assert_eq!(segment.mode() & 0o777, 0o600, "{name}");
    }
    // Nobody listens anywhere else.
    let pid = swarm.running.pid();
    let own: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("our own child")
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter_map(|target| {
            Some(target.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in table.lines().skip(1) {
            let inode = line.split_whitespace().nth(9).unwrap_or_default();
            assert!(!own.iter().any(|socket| socket == inode), "it has a network socket: {line}");
        }
    }
    swarm.end();
}

#[test]
fn every_route_answers() {
    let swarm = Swarm::deploy(&json!({"monitoring_interval": 0.05}));
    swarm.submit(&json!([{"id": "a", "kernel": "monte_carlo", "params": {"paths": 1000}}]));
    swarm.until_task("a", "succeeded");

    let tasks = swarm.get("/api/v1/tasks");
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "{tasks}");
    let fields = [
        ("id", "s"),
        ("number", "u"),
        ("kernel", "s"),
        ("state", "s"),
        ("priority", "s"),
        ("attempts", "u"),
        ("agent", "s?"),
        ("backend", "s?"),
        ("result", "*"),
        ("error", "s?"),
        ("queue_us", "n"),
        ("dispatch_us", "n"),
        ("service_us", "n"),
        ("total_us", "n"),
    ];
    has_fields(&tasks["tasks"][0], &fields, "task");
    has_fields(&swarm.task("a"), &fields, "task");
    // By its number as well.
    assert_eq!(swarm.task("t1")["id"], "a");
    let status = swarm.get("/api/v1/tasks/a/status");
    assert_eq!((&status["id"], &status["state"]), (&json!("a"), &json!("succeeded")), "{status}");
    assert_eq!(swarm.get("/api/v1/tasks?state=succeeded&limit=5")["tasks"].as_array().map(Vec::len), Some(1));
    assert_eq!(swarm.get("/api/v1/tasks?state=failed")["tasks"], json!([]));
    assert_eq!(swarm.get("/api/v1/tasks?limit=0")["tasks"], json!([]));

    assert!(swarm.agents().len() >= 6);
    let fields = [
        ("id", "s"),
        ("kind", "s"),
        ("state", "s"),
        ("pid", "u?"),
        ("cores", "a"),
        ("tasks", "u"),
        ("in_flight", "u"),
        ("restarts", "u"),
        ("busy_s", "n"),
        ("cpu_percent", "n?"),
        ("rss_bytes", "u?"),
    ];
    has_fields(&swarm.agent("compute-0"), &fields, "agent");
    let sampled = swarm.until("agents are sampled", |swarm| {
        let agent = swarm.agent("compute-0");
        agent["rss_bytes"].is_u64().then_some(agent)
    });
    assert!(sampled["rss_bytes"].as_u64() > Some(100_000), "{sampled:#}");
    swarm.ask("POST", "/api/v1/agents/optimization-0/optimize", None).is(200);

    let status = swarm.status();
    let fields = [
        ("swarm", "s"),
        ("state", "s"),
        ("pid", "u"),
        ("uptime_s", "n"),
        ("policy", "s"),
        ("tasks", "o"),
        ("agents", "a"),
        ("host", "o"),
        ("notes", "a"),
    ];
    has_fields(&status, &fields, "status");
    assert_eq!((&status["swarm"], &status["pid"]), (&json!(swarm.place.name()), &json!(swarm.running.pid())));
    let statistics = swarm.get("/api/v1/system/statistics");
    has_fields(&statistics, &[("tasks", "o"), ("latency_us", "o"), ("channels", "a")], "statistics");
    assert_eq!(statistics["results_refused"], 0, "{statistics:#}");
    is_report(&swarm.get("/api/v1/system/report"));
    is_report(&swarm.get("/api/v1/system/report?tasks=all"));
    let health = swarm.get("/api/v1/health");
    assert_eq!(health["status"], "healthy", "{health:#}");
    assert!(health["agents"]["ready"] == health["agents"]["total"], "{health:#}");
    swarm.ask("GET", "/healthz", None).is(200);
    swarm.ask("GET", "/readyz", None).is(200);
    let events = swarm.events();
    let numbers: Vec<u64> = events.iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(
        !numbers.is_empty() && numbers.iter().zip(1..).all(|(number, want)| *number == want),
        "{numbers:?}"
    );
    swarm.ask("POST", "/api/v1/system/stop", None).is(202);
    swarm.ends(0);
}

#[test]
fn what_was_counted_is_told_by_kernel_and_by_agent() {
    let swarm = Swarm::deploy(&json!({}));
    // In no order, so that sorting takes its time on the fastest host.
    let values: Vec<f32> = (0..1_u32 << 20).map(|at| at.wrapping_mul(2_654_435_761) as f32).collect();
    swarm.place.write_array("x.npy", &[1 << 20], &values);
    let mut tasks = vec![json!({"kernel": "noop"})];
    tasks.extend(
        (0..4).map(|at| json!({"kernel": "sort", "inputs": ["x.npy"], "output": format!("y{at}.npy")})),
    );
    let job = json!({"tasks": tasks, "wait": true, "base_dir": swarm.place.path("")});
    swarm.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(200);
    let report = swarm.get("/api/v1/system/report");
    is_report(&report);
    let kernel = |name: &str| {
        let rows = report["kernels"].as_array().expect("kernels");
        rows.iter().find(|row| row["kernel"] == name).unwrap_or_else(|| panic!("{name}: {report:#}"))
    };
    assert!(kernel("noop")["counters"].is_null(), "nothing runs, and nothing is counted: {report:#}");
    let counters = &kernel("sort")["counters"];
    assert_eq!(counters["tasks"], 4, "{counters:#}");
    let is_known = |name: &str, counters: &Value| {
        let (value, why) = (&counters[name]["value"], &counters[name]["unavailable"]);
        assert!(value.is_f64() != why.is_string(), "a count or a reason: {name} in {counters:#}");
        value.is_f64()
    };
    for name in ["cycles", "instructions", "cache_references", "cache_misses", "branches", "branch_misses"] {
        is_known(name, counters);
    }
    for (name, least) in
        [("task_clock_ns", 1e5), ("page_faults", 1.0), ("context_switches", 0.0), ("cpu_migrations", 0.0)]
    {
        let value = counters[name]["value"].as_f64().unwrap_or(f64::INFINITY);
        assert!(!is_known(name, counters) || value >= least, "{name} in {counters:#}");
    }
    let agents = swarm.agents();
    let told = |agent: &Value| agent["counters"]["tasks"].as_u64().unwrap_or(0);
    // An attempt that was overtaken by another counts for its agent only.
    assert!(agents.iter().map(told).sum::<u64>() >= 4, "{agents:#?}");
    let clock = |agent: &Value| agent["counters"]["task_clock_ns"]["value"].as_f64().unwrap_or(0.0);
    let (all, sorts) = (agents.iter().map(clock).sum::<f64>(), counters["task_clock_ns"]["value"].as_f64());
    assert!(sorts.is_none_or(|sorts| sorts <= all + 1.0), "{all} ns: {counters:#}");
    swarm.end();
}

#[test]
fn tuning_shows_what_it_found_and_agents_use_it() {
    let swarm = Swarm::deploy(&json!({"agents": {"optimization": {"budget_percent": 0}}}));
    let optimize = |body: &Value| swarm.ask("POST", "/api/v1/agents/optimization-0/optimize", Some(body));
    optimize(&json!({"wait_s": 0})).refuses(400, "`wait_s` is 0, needs a number above 0");
    optimize(&json!({"wait": 1})).refuses(400, "unknown field `wait`");
    swarm
        .ask("POST", "/api/v1/agents/compute-0/optimize", Some(&json!({"wait_s": 5})))
        .refuses(409, "tuned by the optimization agent");
    swarm.place.write_array("x.npy", &[1 << 12], &vec![1.5f32; 1 << 12]);
    let tasks: Vec<Value> = (0..30).map(|_| json!({"kernel": "reduce", "inputs": ["x.npy"]})).collect();
    let job = json!({"tasks": tasks, "wait": true, "base_dir": swarm.place.path("")});
    swarm.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(200);
    // What ran is known to the learning agent a moment later.
    let tuned = swarm.until("what ran here is tuned", |_| {
        let answer = optimize(&json!({"wait_s": 300})).is(200).json();
        let tuned = answer["tuned"].as_array().expect("a list").clone();
        let ran = |cell: &Value| cell["kernel"] == "reduce" && cell["dtype"] == "f32" && cell["class"] == 14;
        tuned.iter().any(ran).then_some(tuned)
    });
    for cell in &tuned {
        let evidence = &cell["evidence"];
        if evidence.is_null() {
            continue;
        }
        let number = |name: &str| evidence[name].as_f64().unwrap_or_else(|| panic!("{name}: {cell:#}"));
        assert!(number("default_us") > 0.0 && number("challenger_us") > 0.0, "{cell:#}");
        let (low, gain, high) = (number("gain_low"), number("gain"), number("gain_high"));
        assert!(low <= gain && gain <= high && number("runs") > number("variants"), "{cell:#}");
        assert_eq!(
            cell["chosen"] == evidence["challenger"],
            low > 1.03,
            "only who is faster for sure: {cell:#}"
        );
        assert!(
            cell["chosen"] == evidence["challenger"] || cell["chosen"] == evidence["default"],
            "{cell:#}"
        );
    }
    assert!(tuned.iter().any(|cell| cell["evidence"].is_object()), "{tuned:#?}");
    // The tasks that come next run as it was chosen.
    let chosen = tuned.iter().find(|cell| cell["kernel"] == "reduce" && cell["class"] == 14).expect("above");
    let answer = swarm.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(200).json();
    assert_eq!(answer["tasks"][0]["task"]["backend"], chosen["level"], "{answer:#}");
    swarm.end();
}

#[test]
fn mistakes_are_problem_documents() {
    let swarm = Swarm::deploy(&json!({}));
    let ask = |method: &str, path: &str, body: Option<Value>| swarm.ask(method, path, body.as_ref());
    let submit = |body: Value| ask("POST", "/api/v1/tasks/submit", Some(body));
    ask("GET", "/nowhere", None).refuses(404, "there is nothing at /nowhere");
    ask("GET", "/api/v1/tasks/nobody", None).refuses(404, "no task has the id \"nobody\"");
    ask("GET", "/api/v1/tasks/nobody/status", None).refuses(404, "no task");
    ask("POST", "/api/v1/tasks/nobody/cancel", None).refuses(404, "no task");
    ask("GET", "/api/v1/agents/nobody", None).refuses(404, "no agent has the id \"nobody\"");
    ask("DELETE", "/api/v1/agents/nobody", None).refuses(404, "no agent");
    ask("POST", "/api/v1/agents/nobody/optimize", None).refuses(404, "no agent");
    ask("POST", "/api/v1/agents/compute-0/optimize", None).refuses(409, "tuned by the optimization agent");
    ask("DELETE", "/api/v1/tasks", None).refuses(405, "DELETE is not possible at /api/v1/tasks");
    ask("GET", "/api/v1/tasks?state=happy", None).refuses(400, "`state` is \"happy\"");
    ask("GET", "/api/v1/tasks?limit=-1", None).refuses(400, "");
    ask("GET", "/api/v1/tasks?colour=red", None).refuses(400, "colour");
    ask("POST", "/api/v1/agents/spawn", Some(json!({"kind": "gardener"})))
        .refuses(400, "`kind` is \"gardener\"");
    ask("POST", "/api/v1/agents/spawn", Some(json!({"kind": "thermal"})))
        .refuses(409, "a swarm has at most one");
    ask("POST", "/api/v1/agents/spawn", Some(json!({"kind": "compute", "id": "../x"})))
        .refuses(409, "letters, digits");
    ask("POST", "/api/v1/agents/spawn", Some(json!({"kind": "compute", "id": "compute-0"})))
        .refuses(409, "exists already");
    submit(json!(7)).refuses(400, "found a number");
    submit(json!({"task": []})).refuses(400, "`task`");
    submit(json!({"tasks": [], "wait": 1})).refuses(400, "`wait` is 1, needs true or false");
    submit(json!({"tasks": [], "base_dir": "here"})).refuses(400, "needs an absolute path");
    let relative = json!({"tasks": [{"kernel": "sort", "inputs": ["x.npy"], "output": "/tmp/y.npy"}]});
    submit(relative).refuses(400, "the path \"x.npy\" is relative");

    // A wrong task is answered in its place; the others are taken.
    let tasks = json!([{"id": "good", "kernel": "noop"}, {"id": "bad", "kernel": "teleport"}, {"kernel": "noop", "after": ["?"]}, 7]);
    let answer = submit(json!({"tasks": tasks, "wait": true})).is(200).json();
    let answer = answer["tasks"].as_array().expect("one answer per task");
    assert_eq!(answer[0]["task"]["state"], "succeeded", "{answer:#?}");
    for (at, words) in
        [(1, "no kernel is called \"teleport\""), (2, "no task has the id \"?\""), (3, "found a number")]
    {
        assert!(answer[at]["error"].as_str().is_some_and(|error| error.contains(words)), "{:#}", answer[at]);
        assert!(answer[at]["task"].is_null(), "{:#}", answer[at]);
    }
    let again = submit(json!({"tasks": [{"id": "good", "kernel": "noop"}]})).is(202).json();
    assert!(
        again["tasks"][0]["error"].as_str().is_some_and(|error| error.contains("ids must be unique")),
        "{again}"
    );
    assert_eq!(swarm.status()["tasks"]["total"], 1, "refused tasks are not on record");
    swarm.end();
}

#[test]
fn a_submitter_may_wait_for_its_tasks() {
    let swarm = Swarm::deploy(&json!({}));
    swarm.place.write_array("x.npy", &[4], &[4.0f64, 3.0, 2.0, 1.0]);
    let tasks = json!([
        {"id": "sorted", "kernel": "sort", "inputs": ["x.npy"], "output": "y.npy"},
        {"id": "sum", "kernel": "reduce", "inputs": ["y.npy"], "after": ["sorted"]},
        {"id": "broken", "kernel": "sort", "inputs": ["nowhere.npy"], "output": "z.npy"},
    ]);
    let job = json!({"tasks": tasks, "wait": true, "base_dir": swarm.place.path("")});
    let answer = swarm.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(200).json();
    let states: Vec<&Value> = (0..3).map(|at| &answer["tasks"][at]["task"]["state"]).collect();
    assert_eq!(states, ["succeeded", "succeeded", "failed"], "{answer:#}");
    assert_eq!(answer["tasks"][1]["task"]["result"], 10.0, "{answer:#}");
    assert!(
        answer["tasks"][2]["error"].as_str().is_some_and(|error| error.contains("No such file")),
        "{answer:#}"
    );
    // Nothing to wait for is done at once.
    let answer =
        swarm.ask("POST", "/api/v1/tasks/submit", Some(&json!({"tasks": [], "wait": true}))).is(200).json();
    assert_eq!(answer["tasks"], json!([]));
    swarm.end();
}

#[test]
fn a_waiting_submitter_hears_of_the_end() {
    let swarm = Swarm::deploy(&json!({"tasks": {"drain_s": 0}}));
    let socket = swarm.place.socket();
    let job =
        json!({"tasks": [{"id": "long", "kernel": "sleep", "params": {"seconds": 3600}}], "wait": true});
    let waiting =
        std::thread::spawn(move || send(&socket, &request("POST", "/api/v1/tasks/submit", Some(&job))));
    swarm.until("it runs", |swarm| {
        (swarm.ask("GET", "/api/v1/tasks/long", None).status == 200
            && swarm.task("long")["state"] == "running")
            .then_some(())
    });
    swarm.end();
    let answer = waiting.join().expect("no panic").expect("an answer");
    let told = answer.status == 503
        || answer.status == 200 && answer.json()["tasks"][0]["task"]["state"] == "cancelled";
    assert!(told, "{answer:?}");
}

#[test]
fn tasks_are_cancelled_wherever_they_are() {
    let swarm =
        Swarm::deploy(&json!({"agents": {"compute": {"count": 1}}, "tasks": {"window": 1, "batch": 1}}));
    swarm.submit(&json!([
        {"id": "runs", "kernel": "sleep", "params": {"seconds": 3600}},
        {"id": "queued", "kernel": "noop"},
        {"id": "waiting", "kernel": "noop", "after": ["queued"]},
        {"id": "computes", "kernel": "monte_carlo", "params": {"paths": 1e12}},
        {"id": "last", "kernel": "noop"},
    ]));
    swarm.until_task("runs", "running");
    assert_eq!(swarm.task("waiting")["state"], "waiting");
    let cancel = |id: &str| swarm.ask("POST", &format!("/api/v1/tasks/{id}/cancel"), None);
    assert_eq!(cancel("queued").is(200).json()["state"], "cancelled");
    let waiting = swarm.until_task("waiting", "cancelled");
    assert!(waiting["error"].as_str().is_some_and(|why| why.contains("\"queued\"")), "{waiting:#}");
    cancel("runs").is(200);
    swarm.until_task("runs", "cancelled");
    swarm.until_task("computes", "running");
    cancel("computes").is(200);
    swarm.until_task("computes", "cancelled");
    swarm.until_task("last", "succeeded");
    cancel("last").refuses(409, "has ended already: succeeded");
    // Its kernels listened: the agent lives on.
    assert_eq!(swarm.agent("compute-0")["restarts"], 0);
    let report = swarm.end();
    assert_eq!(report["tasks"]["cancelled"], 4, "{}", report["tasks"]);
}

#[test]
fn agents_come_and_go_up_to_the_limit() {
    let swarm = Swarm::deploy(&json!({"max_agents": 3, "agents": {"compute": {"count": 2}}}));
    let spawn = |body: Value| swarm.ask("POST", "/api/v1/agents/spawn", Some(&body));
    let agent = spawn(json!({"kind": "compute", "id": "extra"})).is(201).json();
    assert_eq!((&agent["id"], &agent["kind"]), (&json!("extra"), &json!("compute")), "{agent:#}");
    spawn(json!({"kind": "compute"})).refuses(409, "3 compute agents run already, `max_agents` is 3");
    swarm.until("it is ready", |swarm| (swarm.agent("extra")["state"] == "ready").then_some(()));
    // All three work.
    let tasks: Vec<Value> = (0..60)
        .map(|n| json!({"id": format!("n{n}"), "kernel": "sleep", "params": {"seconds": 0.02}}))
        .collect();
    swarm.submit(&tasks.into());
    swarm.until("all is done", |swarm| (swarm.status()["tasks"]["succeeded"] == 60).then_some(()));
    assert!(swarm.agent("extra")["tasks"].as_u64() > Some(0), "{:#?}", swarm.agents());

    // It finishes what it holds, then it is gone for good.
    swarm.submit(&json!([{"id": "a", "kernel": "sleep", "params": {"seconds": 0.2}}, {"id": "b", "kernel": "sleep", "params": {"seconds": 0.2}}, {"id": "c", "kernel": "sleep", "params": {"seconds": 0.2}}]));
    swarm.until_task("a", "running");
    swarm.ask("DELETE", "/api/v1/agents/extra", None).is(200);
    swarm.until("it is gone", |swarm| {
        (swarm.ask("GET", "/api/v1/agents/extra", None).status == 404).then_some(())
    });
    swarm.until("all is done", |swarm| (swarm.status()["tasks"]["succeeded"] == 63).then_some(()));
    assert_eq!(swarm.status()["tasks"]["retried"], 0, "nobody had to do it again");
    assert_eq!(swarm.events_of("agent_destroyed").len(), 1);

    // Another may have its place and its name.
    spawn(json!({"kind": "compute", "id": "extra"})).is(201);
    swarm.until("it is ready", |swarm| (swarm.agent("extra")["state"] == "ready").then_some(()));
    // A housekeeping agent goes and comes back, too.
    swarm.ask("DELETE", "/api/v1/agents/learning-0", None).is(200);
    swarm.until("it is gone", |swarm| {
        (swarm.ask("GET", "/api/v1/agents/learning-0", None).status == 404).then_some(())
    });
    spawn(json!({"kind": "learning"})).is(201);
    swarm.until("it is ready", |swarm| (swarm.agent("learning-0")["state"] == "ready").then_some(()));
    swarm.end();
}

#[test]
fn a_follower_of_events_sees_an_agent_die_and_live_again() {
    let swarm = Swarm::deploy(&json!({"agents": {"compute": {"count": 2}}}));
    let mut follower = swarm.follow();
    let pid = swarm.agent("compute-1")["pid"].as_u64().expect("a process") as u32;
    assert!(signal(pid, Signal::KILL));
    let died = follower.until(|event| event["kind"] == "agent_died");
    assert_eq!(died["agent"], "compute-1", "{died}");
    assert!(died["text"].as_str().is_some_and(|text| text.contains("signal 9 (killed)")), "{died}");
    let ready = follower.until(|event| event["kind"] == "agent_ready" && event["agent"] == "compute-1");
    assert!(ready["seq"].as_u64() > died["seq"].as_u64());
    // The same through the command line, whose follower ends when the swarm does.
    let mut command = swarm.place.command(&["events", "--follow", "--json"]);
    let running = swarm.place.start(&mut command);
    swarm.until("it sees the past", |_| running.out().contains("agent_died").then_some(()));
    swarm.signal(Signal::TERM);
    let rest = follower.rest();
    running.finish().ends(0);
    assert!(!rest.contains("panicked"), "{rest}");
    swarm.ends(0);
}

#[test]
fn hostile_clients_hurt_nobody() {
    let swarm = Swarm::deploy(&json!({}));
    let socket = swarm.place.socket();
    let post = "POST /api/v1/tasks/submit HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let with_body = |body: &str| format!("{post}content-length: {}\r\n\r\n{body}", body.len());
    let deep = format!("{{\"tasks\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (what, bytes) in [
        ("no HTTP", b"\x00\xff\x13\x37 hello\r\n\r\n".to_vec()),
        ("a head without end", format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes()),
        ("broken JSON", with_body("{\"tasks\": [").into_bytes()),
        ("deep JSON", with_body(&deep).into_bytes()),
        ("no UTF-8", [format!("{post}content-length: 4\r\n\r\n").as_bytes(), b"\xff\xfe\xfd\xfc"].concat()),
        ("two lengths", format!("{post}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}").into_bytes()),
        ("a length that is no number", format!("{post}content-length: many\r\n\r\n{{}}").into_bytes()),
        ("chunks of nonsense", format!("{post}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes()),
        (
            "a path outside",
            b"GET /api/v1/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        (
            "an id of percents",
            b"GET /api/v1/tasks/%ff%00%2f HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        (
            "a huge announcement",
            format!("{post}expect: 100-continue\r\ncontent-length: 999999999999\r\n\r\n").into_bytes(),
        ),
    ] {
        if let Some(answer) = send(&socket, &bytes) {
            assert!((400..500).contains(&answer.status), "{what}: {answer:?}");
        }
        assert_eq!(swarm.status()["state"], "running", "after {what}");
    }
    // Many that say nothing, or only half of it, while others are served.
    let open = || {
        let stream = UnixStream::connect(&socket).expect("the swarm listens");
        stream.set_read_timeout(Some(HANG)).expect("a time limit can be set");
        stream
    };
    let silent: Vec<UnixStream> = (0..100).map(|_| open()).collect();
    let mut half: Vec<UnixStream> = (0..50).map(|_| open()).collect();
    for stream in &mut half {
        stream.write_all(format!("{post}content-length: 1000\r\n\r\n{{\"tasks\"").as_bytes()).expect("sent");
    }
    assert_eq!(swarm.status()["state"], "running");
    swarm.place.cli(&["submit", "--kernel", "noop", "--wait"]).ends(0);
    drop((silent, half));
    // One that never reads its answer.
    let mut deaf = open();
    deaf.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let tasks: Vec<Value> = (0..500).map(|_| json!({"kernel": "noop"})).collect();
    let job = json!({"tasks": tasks, "wait": true});
    swarm.ask("POST", "/api/v1/tasks/submit", Some(&job)).is(200);
    // Several requests at once on one connection come back in order.
    let mut stream = open();
    let get = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(format!("{get}{get}{last}").as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("answers");
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2, "{text}");
    assert_eq!(text.matches("HTTP/1.1 404").count(), 1, "{text}");
    let report = swarm.end();
    assert_eq!(report["tasks"]["succeeded"], 501, "{}", report["tasks"]);
    drop(deaf);
}

#[test]
fn names_with_strange_letters_are_found_again() {
    let swarm = Swarm::deploy(&json!({}));
    for id in ["a b", "ü/ö", "100%", "..", "a?b#c", "t7"] {
        swarm.submit(&json!([{"id": id, "kernel": "noop"}]));
        let shown = swarm.until(&format!("{id:?} is done"), |swarm| {
            let ran = swarm.place.cli(&["task", "show", id, "--json"]).ends(0).json();
            (ran["state"] == "succeeded").then_some(ran)
        });
        assert_eq!(shown["id"], id, "{shown}");
    }
    swarm.end();
}
