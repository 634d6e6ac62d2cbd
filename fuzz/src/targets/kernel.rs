//! What the kernel, and whoever chose names in it, says: `/proc`, netlink, ELF files.

use ferry_engine::check::proc::{fields, maps as named_maps};
use ferry_engine::sys::procfs::{children, maps, stat, status};
use ferry_engine::{check, fuzzing};

/// Every parser of a `/proc` file, on the same bytes.
pub fn procfs(input: &[u8]) {
    let _ = (stat::parse(input), status::parse(input), children::parse(input));
    for line in input.split(|byte| *byte == b'\n') {
        if let Some(mapping) = maps::parse_line(line) {
            assert!(mapping.range.start <= mapping.range.end, "{mapping:?}");
        }
    }
    let text = String::from_utf8_lossy(input);
    let _ = fields::Stat::parse(&text);
    for line in text.lines() {
        let _ = named_maps::NamedMapping::parse(line).map(|mapping| mapping.is_shared_writable());
        fuzzing::netlink_table(line);
    }
    let fields = fields::Fields(text.into_owned());
    for name in ["NSpid", "flags", "inotify wd", "Threads", "SigQ"] {
        let _ = (fields.number::<u64>(name), fields.mask(name), fields.words(name).count());
    }
}

pub(super) fn procfs_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "4711 (a (b) c) S 1 4711 4711 34816 -1 4194560 120 0 0 0 1 2 0 0 20 0 3 0 8123456 10000 200 \
         18446744073709551615 94000000000000 94000000010000 140730000000000 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 \
         94000000020000 94000000030000 94000000040000 140730000001000 140730000002000 140730000002000 \
         140730000003000 0\n",
        "Name:\tcat\nState:\tS (sleeping)\nTracerPid:\t0\nNSpid:\t4711\t1\nThreads:\t3\nSigQ:\t0/95000\n\
         SigBlk:\t0000000000000000\nSeccomp:\t2\n",
        "55d0c0000000-55d0c0002000 r--p 00000000 fe:00 1234                       /usr/bin/cat\n\
         7f5500000000-7f5500021000 rw-p 00000000 00:00 0 \n\
         7f5500030000-7f5500031000 rw-s 00000000 00:01 77                         /memfd:a b (deleted)\n\
         7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n\
         ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n",
        "pos:\t0\nflags:\t02004002\nmnt_id:\t15\nino:\t1057\ninotify wd:1 ino:9e7e sdev:800013 mask:800afce\n",
        "12 345 6789 ",
        "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
         0000000000000000 0   4711       00000113 0        0        0     2        0        12345\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// A netlink datagram, and the build id.
pub fn netlink(input: &[u8]) {
    fuzzing::netlink(input);
}

pub(super) fn netlink_seeds() -> Vec<Vec<u8>> {
    vec![
        // RTM_NEWADDR: 192.0.2.7/24 on interface 2.
        message(
            20,
            &[2, 24, 0x80, 0, 2, 0, 0, 0],
            &[(1, &[192, 0, 2, 7]), (2, &[192, 0, 2, 7]), (8, &[0x80, 0, 0, 0])],
        ),
        // RTM_NEWLINK: an Ethernet interface.
        message(
            16,
            &[0, 0, 1, 0, 2, 0, 0, 0, 0x43, 0x10, 1, 0, 0, 0, 0, 0],
            &[(3, b"eth0\0"), (1, &[2, 0, 0, 0, 0, 1])],
        ),
        // inet_diag_msg, 72 bytes, and unix_diag_msg, 16, with name and peer.
        message(20, &[[2, 10, 0, 0].repeat(18).as_slice()].concat(), &[]),
        message(
            20,
            &[1, 1, 1, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
            &[(0, b"\0abstract"), (2, &[8, 0, 0, 0])],
        ),
        // A table, and the error and the end that any dump has.
        message(0x0a00, &[1, 0, 0, 0], &[(1, b"ferry-1\0"), (2, &[0; 4])]),
        message(2, &[0; 20], &[]),
        message(3, &[0; 4], &[]),
    ]
}

/// `nlmsghdr`, a head, attributes.
fn message(kind: u16, head: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = [&[0; 4], &kind.to_ne_bytes()[..], &[0; 10], head].concat();
    for (kind, value) in attributes {
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// An ELF file's build id.
pub fn elf(input: &[u8]) {
    let id = check::elf::build_id_of(input);
    assert!(id.is_none_or(|id| id.len() <= 64));
}

/// The smallest ELF file with a build id: a header, one section of notes, names.
pub(super) fn elf_seeds() -> Vec<Vec<u8>> {
    const HEADER: u64 = 64;
    let note =
        [&4u32.to_le_bytes()[..], &20u32.to_le_bytes(), &3u32.to_le_bytes(), b"GNU\0", &[0xab; 20]].concat();
    let names = b"\0.note.gnu.build-id\0.shstrtab\0";
    let (note_at, names_at) = (HEADER, HEADER + note.len() as u64);
    let sections_at = (names_at + names.len() as u64).next_multiple_of(8);
    let section = |name: u32, kind: u32, at: u64, len: u64| {
        let mut bytes = [name.to_le_bytes(), kind.to_le_bytes()].concat();
        for word in [0, 0, at, len, 0, 4, 0] {
            bytes.extend(u64::to_le_bytes(word));
        }
        bytes
    };
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([3u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1u32.to_le_bytes());
    file.extend([0, 0, sections_at].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 0, 0, 64, 3, 2].map(u16::to_le_bytes).concat());
    file.extend(&note);
    file.extend(names);
    file.resize(sections_at as usize, 0);
    file.extend(section(0, 0, 0, 0));
    file.extend(section(1, 7, note_at, note.len() as u64));
    file.extend(section(20, 3, names_at, names.len() as u64));
    assert_eq!(check::elf::build_id_of(&file[..]).as_deref(), Some("ab".repeat(20).as_str()));
    vec![file]
}
