//! Random trees that change between rounds, and while a round runs: what arrives is
//! what was there when the workload stood still.

mod files_support;

use files_support::Ends;
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that a workload does. Numbers choose among a few names, so that what one
/// does meets what another did; most fail now and then, as a workload's would.
#[derive(Clone, Debug)]
enum Deed {
    Write { at: u8, offset: u32, length: u32, with: u8 },
    Append { at: u8, length: u16 },
    Cut { at: u8, size: u32 },
    Punch { at: u8, offset: u32, length: u32 },
    Directory(u8),
    Rename(u8, u8),
    Exchange(u8, u8),
    Link(u8, u8),
    Symlink(u8, u8),
    Remove(u8),
    Mode(u8, u16),
    Owner(u8, u16),
    Xattr(u8, u8, u8),
    NoXattr(u8, u8),
    Time(u8, u32),
    Fifo(u8),
    Socket(u8),
    Whiteout(u8),
}

/// One of 27 names, of up to three levels.
fn place(root: &Path, number: u8) -> PathBuf {
    let names = ["a", "b", "c"];
    let (one, two, three) = (number % 3, number / 3 % 3, number / 9 % 3);
    let mut path = root.join(names[one as usize]);
    if two > 0 {
        path = path.join(names[two as usize]);
    }
    if three > 0 {
        path = path.join(names[three as usize]);
    }
    path
}

impl Deed {
    fn is_done_in(&self, root: &Path) -> std::io::Result<()> {
        let at = |number: &u8| place(root, *number);
        let open = |number: &u8| {
            use std::os::unix::fs::OpenOptionsExt;
            // A fifo would be waited for.
            let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            fs::File::options().create(true).truncate(false).write(true).custom_flags(flags).open(at(number))
        };
        match self {
            Deed::Write { at, offset, length, with } => {
                open(at)?.write_all_at(&vec![*with; *length as usize], u64::from(*offset))?;
            }
            Deed::Append { at, length } => {
                let file = open(at)?;
                let end = file.metadata()?.len();
                file.write_all_at(&vec![b'+'; usize::from(*length)], end)?;
            }
            Deed::Cut { at, size } => open(at)?.set_len(u64::from(*size))?,
            Deed::Punch { at, offset, length } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(open(at)?, flags, u64::from(*offset), u64::from(*length).max(1))?;
            }
            Deed::Directory(number) => fs::create_dir(at(number))?,
            Deed::Rename(from, to) => fs::rename(at(from), at(to))?,
            Deed::Exchange(one, other) => {
                rustix::fs::renameat_with(CWD, at(one), CWD, at(other), RenameFlags::EXCHANGE)?;
            }
            Deed::Link(from, to) => fs::hard_link(at(from), at(to))?,
            Deed::Symlink(target, name) => std::os::unix::fs::symlink(at(target), at(name))?,
            Deed::Remove(number) => {
                let path = at(number);
                if fs::symlink_metadata(&path)?.is_dir() {
                    fs::remove_dir_all(path)?;
                } else {
                    fs::remove_file(path)?;
                }
            }
            Deed::Mode(number, mode) => {
                if !fs::symlink_metadata(at(number))?.is_symlink() {
                    fs::set_permissions(at(number), PermissionsExt::from_mode(u32::from(mode & 0o7777)))?;
                }
            }
            Deed::Owner(number, owner) => {
                let (uid, gid) = (Uid::from_raw(u32::from(*owner)), Gid::from_raw(u32::from(owner / 2)));
                rustix::fs::chownat(CWD, at(number), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Deed::Xattr(number, name, value) => {
                let name = format!("trusted.x{}", name % 3);
                let value = vec![*value; usize::from(*value)];
                rustix::fs::lsetxattr(at(number), name, &value, XattrFlags::empty())?;
            }
            Deed::NoXattr(number, name) => {
                rustix::fs::lremovexattr(at(number), format!("trusted.x{}", name % 3))?;
            }
            Deed::Time(number, seconds) => {
                let time =
                    Timespec { tv_sec: i64::from(*seconds), tv_nsec: i64::from(seconds % 1_000_000_000) };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::utimensat(CWD, at(number), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Deed::Fifo(number) => {
                rustix::fs::mknodat(CWD, at(number), FileType::Fifo, Mode::RUSR, 0)?;
            }
            Deed::Socket(number) => {
                rustix::fs::mknodat(CWD, at(number), FileType::Socket, Mode::RUSR, 0)?;
            }
            Deed::Whiteout(number) => {
                rustix::fs::mknodat(CWD, at(number), FileType::CharacterDevice, Mode::empty(), 0)?;
            }
        }
        Ok(())
    }
}

fn deeds(most: usize) -> impl Strategy<Value = Vec<Deed>> {
    let n = || 0..27u8;
    let deed = prop_oneof![
        4 => (n(), 0..300_000u32, 1..150_000u32, any::<u8>())
            .prop_map(|(at, offset, length, with)| Deed::Write { at, offset, length, with }),
        3 => (n(), 1..2000u16).prop_map(|(at, length)| Deed::Append { at, length }),
        2 => (n(), 0..300_000u32).prop_map(|(at, size)| Deed::Cut { at, size }),
        1 => (n(), 0..300_000u32, 0..200_000u32).prop_map(|(at, offset, length)| Deed::Punch { at, offset, length }),
        4 => n().prop_map(Deed::Directory),
        4 => (n(), n()).prop_map(|(from, to)| Deed::Rename(from, to)),
        2 => (n(), n()).prop_map(|(one, other)| Deed::Exchange(one, other)),
        3 => (n(), n()).prop_map(|(from, to)| Deed::Link(from, to)),
        1 => (n(), n()).prop_map(|(target, name)| Deed::Symlink(target, name)),
        3 => n().prop_map(Deed::Remove),
        1 => (n(), any::<u16>()).prop_map(|(at, mode)| Deed::Mode(at, mode)),
        1 => (n(), any::<u16>()).prop_map(|(at, owner)| Deed::Owner(at, owner)),
        1 => (n(), any::<u8>(), any::<u8>()).prop_map(|(at, name, value)| Deed::Xattr(at, name, value)),
        1 => (n(), any::<u8>()).prop_map(|(at, name)| Deed::NoXattr(at, name)),
        1 => (n(), any::<u32>()).prop_map(|(at, time)| Deed::Time(at, time)),
        1 => n().prop_map(Deed::Fifo),
        1 => n().prop_map(Deed::Socket),
        1 => n().prop_map(Deed::Whiteout),
    ];
    prop::collection::vec(deed, 0..most)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_was_there_at_the_freeze_arrives(rounds in prop::collection::vec(deeds(25), 1..5)) {
        if !is_root() {
            println!("skipped: needs root");
            return Ok(());
        }
        let mut ends = Ends::new(|_| {});
        for deeds in rounds {
            ends.round();
            for deed in deeds {
                let _ = deed.is_done_in(&ends.here());
            }
        }
        ends.freeze();
        ends.arrive();
        ends.assert_equal();
    }

    #[test]
    fn what_changes_during_a_round_arrives_all_the_same(deeds in deeds(60)) {
        if !is_root() {
            println!("skipped: needs root");
            return Ok(());
        }
        let mut ends = Ends::new(|_| {});
        let (here, stop) = (ends.here(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Over and over, at another place each time, as long as rounds run.
                for (turn, deed) in deeds.iter().cycle().take(3000).enumerate() {
                    if stop.load(Ordering::Relaxed) && turn >= deeds.len() {
                        break;
                    }
                    let _ = deed.is_done_in(&here);
                }
            });
            for _ in 0..6 {
                ends.round();
            }
            stop.store(true, Ordering::Relaxed);
        });
        ends.freeze();
        ends.arrive();
        ends.assert_equal();
    }
}
