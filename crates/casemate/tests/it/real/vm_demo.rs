//! `casemate dev --demo`, as `make dev` starts it where QEMU is: a newcomer's first sight.

use super::world::World;

#[tokio::test]
async fn vm_the_example_shows_an_update_from_inside_the_machine() {
    let (mut world, shown) = World::demo();
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for line in
        ["boots 1 2", "memory 512 MB 1024 MB", "/ web 1 web 2", "/count 1 2 (its volume is still there)"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(lines.contains(&words), "{line} in\n{shown}");
    }
    let inside = lines.iter().find(|words| words.first() == Some(&"/memory")).expect("its memory");
    let [before, after] = [1, 3].map(|at| inside[at].parse::<u64>().unwrap());
    assert!((400..512).contains(&before) && (900..1024).contains(&after), "{inside:?}");
    assert!(
        shown.contains("It was down for ") && shown.contains("are real machines on this host"),
        "{shown}"
    );

    // What is shown can be tried.
    let curl = lines.iter().find(|words| words.first() == Some(&"curl")).expect("a way to ask the app");
    assert_eq!(reqwest::get(curl[1]).await.unwrap().text().await.unwrap().trim(), "web 2");
    let broken = std::fs::read_to_string(world.data().join("broken.yml")).unwrap();
    let update = world.client.cvm("hello-casemate").patch().compose(broken).send().await.unwrap();
    let why = update.accepted().unwrap().wait().await.unwrap_err().to_string();
    assert!(why.contains("/no/such/program") && why.contains("put back"), "{why}");
    world.end();
    assert_eq!(world.machines(), [0_u32; 0]);
}
