//! Each target for a second, or for `FERRY_FUZZ_SECONDS`.

use ferry_fuzz::run::{patience, run};
use ferry_fuzz::targets::{ALL, target};

macro_rules! short {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(target(stringify!($name)), patience());
        })*

        #[test]
        fn no_target_is_forgotten() {
            let mut named = vec![$(stringify!($name)),*];
            let mut all: Vec<&str> = ALL.iter().map(|target| target.name).collect();
            named.sort_unstable();
            all.sort_unstable();
            assert_eq!(named, all);
        }
    };
}

short!(control frame page_store arriving_images image_files image_directory pager pager_sockets procfs netlink elf journal address_move blobs);
