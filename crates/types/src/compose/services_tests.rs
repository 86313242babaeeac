use serde_json::json;

use super::*;

fn runnable(yaml: &str) -> Result<Vec<ServiceSpec>, String> {
    let document = ComposeDoc::from_value(json!({"docker_compose_file": yaml})).expect("an object");
    document.runnable().map_err(|error| error.message)
}

/// A file with one service `web`, whose fields are given in YAML's flow form.
fn web(fields: &str) -> Result<ServiceSpec, String> {
    let yaml = format!("services: {{web: {{image: \"web:1\", {fields}}}}}\nvolumes: {{data: }}\n");
    runnable(&yaml).map(|mut services| services.remove(0))
}

fn refusal(fields: &str) -> String {
    web(fields).expect_err(fields)
}

#[test]
fn a_whole_file_is_read() {
    let yaml = r#"
version: "3.8"
x-defaults: &defaults
  restart: unless-stopped
services:
  web:
    <<: *defaults
    image: web:1
    container_name: front
    command: ["serve", "--port", 8080]
    entrypoint: /bin/sh -c "echo 'a b'"
    environment:
      TOKEN: ${TOKEN:?needed}
      MODE: 1.50
      DEBUG: true
      PASSED:
    ports:
      - "80:8080"
      - 9090
      - target: 7070
        published: "70"
    volumes:
      - data:/data:ro
      - type: volume
        source: data
        target: /again
    depends_on: [db]
    user: 1000:1000
    working_dir: /srv
    labels: {a: b}
  db:
    image: db@sha256:00
    restart: on-failure:3
    environment: ["A=b=c", "B"]
volumes:
  data:
"#;
    let services = runnable(yaml).unwrap();
    let [web, db] = &services[..] else { panic!("{services:?}") };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        (web.name.as_str(), web.image.as_str(), web.restart),
        ("web", "web:1", Restart::UnlessStopped)
    );
    assert_eq!(web.command.as_ref().unwrap().words().unwrap(), ["serve", "--port", "8080"]);
    assert_eq!(web.entrypoint.as_ref().unwrap().words().unwrap(), ["/bin/sh", "-c", "echo 'a b'"]);
    let environment: Vec<_> = web.environment.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    assert_eq!(
        environment,
        [
            ("TOKEN", Some("${TOKEN:?needed}")),
            ("MODE", Some("1.5")),
            ("DEBUG", Some("true")),
            ("PASSED", None)
        ]
    );
    let ports: Vec<_> = web.ports.iter().map(|port| (port.published, port.target)).collect();
    assert_eq!(ports, [(80, 8080), (9090, 9090), (70, 7070)]);
    let volumes: Vec<_> =
        web.volumes.iter().map(|v| (v.volume.as_str(), v.target.as_str(), v.read_only)).collect();
    assert_eq!(volumes, [("data", "/data", true), ("data", "/again", false)]);
    assert_eq!(
        (&web.user, &web.working_dir, &web.container_name),
        (&text("1000:1000"), &text("/srv"), &text("front"))
    );
    assert_eq!(db.restart, Restart::OnFailure { times: Some(3) });
    assert_eq!(db.environment, [("A".to_owned(), text("b=c")), ("B".to_owned(), None)]);
    assert_eq!(start_order(&services), [1, 0], "db before web");
}

#[test]
fn what_is_not_in_the_list_is_refused_by_name() {
    for key in [
        "privileged: true",
        "build: .",
        "networks: [a]",
        "env_file: .env",
        "healthcheck: {}",
        "cap_add: [ALL]",
    ] {
        let name = key.split(':').next().unwrap();
        let wanted = format!(
            "service `web`: `{name}` is not supported on this node; supported: image, command, entrypoint, environment, ports, volumes, depends_on, restart, user, working_dir, container_name, labels"
        );
        assert_eq!(refusal(key), wanted);
    }
    // Keys that are understood in part: what would be without effect is refused as well.
    for (key, wanted) in [
        (
            "ports: [{target: 80, mode: host}]",
            "`mode` \"host\", which is not supported on this node; supported: \"ingress\"",
        ),
        ("ports: [{target: 80, name: a}]", "an entry of `ports` has `name`, which is not supported"),
        (
            "depends_on: {db: {required: false}}",
            "`required` false, which is not supported on this node; supported: true",
        ),
        (
            "depends_on: {db: {restart: true}}",
            "`restart` true, which is not supported on this node; supported: false",
        ),
        ("container_name: ../evil name", "`container_name` must have a name of at most 64 letters"),
    ] {
        let error = refusal(key);
        assert!(error.contains(wanted), "{error}");
    }
    let twice = "services: {web: {image: w, container_name: db}, db: {image: d}}";
    assert!(
        runnable(twice)
            .unwrap_err()
            .to_string()
            .contains("`container_name` `db` is the name of another service")
    );
    let named = "services: {web: {image: w}}\nvolumes: {a: {name: same}}";
    assert!(runnable(named).unwrap_err().to_string().contains("volume `a` has `name`"));
    runnable("services: {web: {image: w, ports: [{target: 80, mode: ingress}]}}").unwrap();
    let error = runnable("services: {web: {image: w}}\nnetworks: {a: }").unwrap_err();
    assert_eq!(
        error,
        "`docker_compose_file`: `networks` is not supported on this node; supported: services, volumes, name, version"
    );
    for name in ["..", "_web", &"x".repeat(65)] {
        let error = runnable(&format!("services: {{{name}: {{image: w}}}}")).unwrap_err();
        assert!(error.contains("must have a name of at most 64"), "{error}");
    }
    let bash = ComposeDoc::from_value(json!({"runner": "bash", "bash_script": "true"})).unwrap();
    assert_eq!(bash.runnable().unwrap_err().field, "runner");
}

#[test]
fn a_value_that_is_not_understood_is_refused_by_key() {
    for (fields, part) in [
        ("image: 'web:${TAG}'", "duplicate"),
        ("ports: ['80:8080/udp']", "`ports`: protocol `udp`"),
        ("ports: ['127.0.0.1:80:80']", "`ports`: `127.0.0.1` is not a port"),
        ("ports: ['8000-8010']", "`ports`: `8000-8010` is not a port"),
        ("ports: [0]", "`ports`: `0` is not a port"),
        ("ports: [70000]", "`ports`: `70000` is not a port"),
        ("ports: [80, '80:81']", "port 80 is published twice"),
        ("ports: [{published: 80}]", "needs a `target`"),
        ("ports: 80", "`ports` must be a list, not a number"),
        ("volumes: ['./here:/there']", "`./here` is a path of the machine"),
        ("volumes: ['/etc:/there']", "`/etc` is a path of the machine"),
        ("volumes: ['other:/there']", "`other` is not among the `volumes`"),
        ("volumes: ['data:there']", "absolute path"),
        ("volumes: ['data:/a/../..']", "absolute path"),
        ("volumes: ['data:/']", "below `/`"),
        ("volumes: ['data:/a:z']", "`:ro` or `:rw`"),
        ("volumes: [{type: bind, source: /etc, target: /etc}]", "type `bind` is not supported"),
        ("volumes: [{type: tmpfs, target: /etc}]", "type `tmpfs` is not supported"),
        ("depends_on: [db]", "there is no such service"),
        ("depends_on: [web]", "goes in a circle"),
        ("depends_on: {web: {condition: service_healthy}}", "condition `service_healthy` is not supported"),
        ("restart: sometimes", "`restart` must be"),
        ("working_dir: srv", "`working_dir` must be an absolute path"),
        ("user: '${WHO}'", "`user` may not have variables"),
        ("command: 'echo \"a'", "`command`: the quote \" does not end"),
        ("command: '${A'", "has no `}`"),
        ("command: {a: b}", "`command` must be a line or a list, not an object"),
        ("environment: ['a b=c']", "cannot be a variable's name"),
        ("environment: {A: [1]}", "`environment` has a list for `A`"),
        ("environment: {A: '${A!}'}", "`environment.A`: `${A!}` is not a form"),
    ] {
        let error = refusal(fields);
        assert!(error.contains(part), "{fields}: {error}");
    }
    let error = runnable("services: {web: {image: 'web:${TAG:-1}'}}").unwrap_err();
    assert_eq!(error, "service `web`: `image` may not have variables, and `web:${TAG:-1}` has one");
}

#[test]
fn restart_no_is_also_older_yaml() {
    assert_eq!(web("restart: no").unwrap().restart, Restart::No);
    assert_eq!(web("restart: false").unwrap().restart, Restart::No);
    assert_eq!(web("restart: 'no'").unwrap().restart, Restart::No);
}

#[test]
fn variables_are_replaced() {
    let value_of = |name: &str| match name {
        "A" => Some("one".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    for (template, wanted) in [
        ("$A-${A}", "one-one"),
        ("$A_B$$A", "$A"),
        ("${NONE}|${EMPTY}", "|"),
        ("${NONE:-x}${NONE-y}${EMPTY:-z}${EMPTY-w}", "xyz"),
        ("${A:-x}", "one"),
        ("${NONE:-${A}!}", "one!"),
        ("${NONE:-${ALSO:-deep}}", "deep"),
        ("${A:+yes}${NONE:+no}${EMPTY+set}${EMPTY:+no}", "yesset"),
        ("${A:?why}", "one"),
        ("{}}", "{}}"),
    ] {
        assert_eq!(substitute(template, &value_of).as_deref(), Ok(wanted), "{template}");
    }
    assert_eq!(
        substitute("${NONE:?set it}", &value_of).unwrap_err(),
        "the variable `NONE` is required: set it"
    );
    assert_eq!(substitute("${EMPTY:?}", &value_of).unwrap_err(), "the variable `EMPTY` is required");
    let deep = format!("{}x{}", "${N:-".repeat(100), "}".repeat(100));
    assert!(substitute(&deep, &value_of).unwrap_err().contains("too deep"));
}

#[test]
fn a_service_gets_its_variables() {
    let service =
        web("command: 'echo ${A} \"${A}\"', entrypoint: ['$A'], environment: ['X=${A:-x}', 'A', 'NONE']")
            .unwrap();
    let with = service.with(&|name| (name == "A").then(|| "a b".to_owned())).unwrap();
    assert_eq!(
        with.command.unwrap().words().unwrap(),
        ["echo", "a", "b", "a b"],
        "a line is split with its values in it"
    );
    assert_eq!(with.entrypoint.unwrap().words().unwrap(), ["a b"]);
    let wanted = [("X", "a b"), ("A", "a b")].map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
    assert_eq!(with.environment, wanted, "a name without a value that is nowhere is left out");

    let strict = web("environment: {X: '${A:?needed}'}").unwrap();
    assert_eq!(
        strict.with(&|_| None).unwrap_err().message,
        "service `web`: the variable `A` is required: needed"
    );
}

#[test]
fn the_documentation_has_the_same_list() {
    let page = include_str!("../../../../docs/compose.md");
    let rows = |keys: &[Key]| -> String {
        keys.iter().map(|key| format!("| `{}` | {} |\n", key.name, key.meaning)).collect()
    };
    assert!(
        page.contains(&rows(&SERVICE_KEYS)),
        "docs/compose.md needs these rows:\n{}",
        rows(&SERVICE_KEYS)
    );
    assert!(page.contains(&rows(&FILE_KEYS)), "docs/compose.md needs these rows:\n{}", rows(&FILE_KEYS));
}
