//! What a tree of many names, and a large file, cost: printed, and nothing that has not
//! changed is sent. `FERRY_TEST_FILES` says how many names.

mod files_support;

use ferry_engine::companion::Companion;
use files_support::Ends;
use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

#[test]
fn many_names_cost_a_look_each_and_a_changed_block_a_block() {
    let names: usize = std::env::var("FERRY_TEST_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(5000);
    let mut ends = Ends::new(|here| {
        for directory in 0..names.div_ceil(100) {
            let place = here.join(directory.to_string());
            fs::create_dir(&place).unwrap();
            for file in 0..100 {
                fs::write(place.join(file.to_string()), format!("{directory} {file}")).unwrap();
            }
        }
        let large = fs::File::create(here.join("large")).unwrap();
        for at in 0..64 {
            large.write_all_at(&vec![at as u8 + 1; 1 << 20], at << 20).unwrap();
        }
    });
    // What was written just now is looked at twice.
    std::thread::sleep(Duration::from_millis(30));
    let timed = |what: &str, ends: &mut Ends, work: fn(&mut Ends) -> u64| {
        let began = Instant::now();
        let bytes = work(ends);
        println!("{what}: {bytes} bytes in {:?}", began.elapsed());
        bytes
    };
    let all = timed("round 0", &mut ends, Ends::round);
    assert!(all > 64 << 20);
    let again = timed("round 1, nothing changed", &mut ends, Ends::round);
    assert!(again < 1000, "{again}");
    fs::write(ends.here().join("0/0"), b"changed").unwrap();
    let large = fs::File::options().write(true).open(ends.here().join("large")).unwrap();
    large.write_all_at(b"changed", 20 << 20).unwrap();
    let began = Instant::now();
    let forecast = ends.source.peek().unwrap();
    println!("peek: {forecast:?} in {:?}", began.elapsed());
    let last = timed("freeze, two files changed", &mut ends, Ends::freeze);
    assert!((64 << 10..80 << 10).contains(&last), "{last}");
    let began = Instant::now();
    ends.arrive();
    println!("in place: {:?}", began.elapsed());
    ends.assert_equal();
}
