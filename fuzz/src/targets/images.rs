//! CRIU's image files: as they arrive, one by one, and as a directory.

use crate::run::scratch;
use arbitrary::{Arbitrary, Unstructured};
use ferry_engine::fuzzing;
use ferry_engine::images::file::{self, Kind, Messages};
use ferry_engine::images::proto::{
    CoreEntry, InventoryEntry, MmEntry, PE_PRESENT, PagemapEntry, PagemapHead, PstreeEntry, RegistersX86,
    TaskCoreEntry, ThreadInfoX86, VmaEntry,
};
use ferry_engine::images::{assemble, tree};
use ferry_engine::page_store::PageStore;
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{Bytes, PageCount};
use ferry_transport::wire::control::{FinalSpace, ImageFile, RestoreMode};
use std::fs;

const KINDS: [Kind; 5] = [Kind::Inventory, Kind::Pstree, Kind::Core, Kind::Mm, Kind::Pagemap];

/// One image file of any kind: the first byte says which, the rest follows its head.
pub fn image_files(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let mut image = file::begin(kind);
    image.extend_from_slice(rest);
    for bytes in [rest, &image] {
        let Ok(messages) = Messages::of(bytes, kind) else { continue };
        let _ = messages.clone().rest::<InventoryEntry>();
        let _ = messages.clone().rest::<PstreeEntry>();
        let _ = messages
            .clone()
            .rest::<CoreEntry>()
            .map(|cores| cores.iter().filter_map(CoreEntry::stack_pointer).count());
        let _ = messages
            .clone()
            .rest::<MmEntry>()
            .map(|mms| mms.iter().flat_map(|mm| &mm.vmas).map(VmaEntry::treatment).count());
        let _ = messages.rest::<PagemapEntry>().map(|entries| {
            entries.iter().fold(0, |all, entry| all ^ entry.pages() ^ u64::from(entry.effective_flags()))
        });
    }
}

pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    let head = |kind: Kind| file::begin(kind).len();
    let files = directory_files();
    let numbered = KINDS.iter().enumerate().filter_map(|(index, kind)| {
        let (_, bytes) = files.iter().find(|(_, bytes)| bytes.starts_with(&file::begin(*kind)))?;
        Some([&[index as u8], &bytes[head(*kind)..]].concat())
    });
    numbered.collect()
}

/// The names of a directory with one process.
const NAMES: [&str; 6] =
    ["inventory.img", "pstree.img", "core-7.img", "mm-7.img", "pagemap-7.img", "pages-1.img"];

/// A directory of images, read as a tree and completed with pages. The input is a
/// list of files: a byte for the name, two for the length, content.
pub fn image_directory(input: &[u8]) {
    let directory = tempfile::tempdir_in(scratch()).expect("a directory can be made");
    let mut rest = input;
    while let Some(([name, low, high], after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let name = NAMES[usize::from(*name) % NAMES.len()];
        fs::write(directory.path().join(name), &after[..length]).expect("a file can be written");
        rest = &after[length..];
    }
    if let Ok(processes) = tree::processes(directory.path()) {
        for process in &processes {
            for pair in process.vmas.windows(2) {
                assert!(pair[0].end <= pair[1].start, "out of order: {pair:?}");
            }
        }
    }
    for mode in [RestoreMode::Eager, RestoreMode::Lazy] {
        let _ = assemble(directory.path(), sealed(), mode);
    }
}

/// Four pages of process 7, as a source would have sent them.
fn sealed() -> ferry_engine::page_store::Sealed {
    let store = PageStore::new(Bytes(1 << 20)).expect("a store can be made");
    let run = Run { start: PageAddr::containing(0x10_0000), count: 4, kind: RunKind::Data };
    let data = bytes::Bytes::from(vec![1; 4 * PAGE_SIZE]);
    store.put(&PageChunk { space: SpaceId(0), round: Round(0), runs: vec![run], data }).expect("they fit");
    let present = vec![PageRange { start: run.start, count: PageCount(4) }];
    store.seal(&[FinalSpace { space: SpaceId(0), image_pid: 7, present }]).expect("they were put")
}

fn directory_files() -> Vec<(&'static str, Vec<u8>)> {
    fn image<M: prost::Message>(kind: Kind, messages: &[M]) -> Vec<u8> {
        let mut bytes = file::begin(kind);
        messages.iter().for_each(|message| file::append(&mut bytes, message));
        bytes
    }
    let vma = |start: u64, end: u64, status: u32, flags: u32| VmaEntry {
        start,
        end,
        prot: 3,
        flags,
        status,
        madv: None,
    };
    let core = CoreEntry {
        mtype: 1,
        x86: Some(ThreadInfoX86 { gpregs: RegistersX86 { sp: 0x7ff0_0008 } }),
        task: Some(TaskCoreEntry { task_state: 1 }),
        aarch64: None,
    };
    let mm = MmEntry {
        vmas: vec![
            vma(0x10_0000, 0x20_0000, 1 | 1 << 9, 0x22),
            vma(0x40_0000, 0x40_2000, 1 | 1 << 6, 0x02),
            vma(0x7ff0_0000, 0x7ff0_2000, 1 | 1 << 9, 0x22),
            vma(0x7fff_0000, 0x7fff_2000, 1 | 1 << 3 | 1 << 9, 0x22),
        ],
    };
    let entry = |vaddr, pages| PagemapEntry {
        vaddr,
        compat_nr_pages: 0,
        in_parent: None,
        flags: Some(PE_PRESENT),
        nr_pages: Some(pages),
    };
    let process = PstreeEntry { pid: 7, ppid: 0, pgid: 7, sid: 7, threads: vec![7] };
    let mut pagemap = image(Kind::Pagemap, &[PagemapHead { pages_id: 1 }]);
    file::append(&mut pagemap, &entry(0x7fff_0000, 2));
    vec![
        (NAMES[0], image(Kind::Inventory, &[InventoryEntry { img_version: 2 }])),
        (NAMES[1], image(Kind::Pstree, &[process])),
        (NAMES[2], image(Kind::Core, &[core])),
        (NAMES[3], image(Kind::Mm, &[mm])),
        (NAMES[4], pagemap),
        (NAMES[5], vec![9; 2 * PAGE_SIZE]),
    ]
}

pub(super) fn directory_seeds() -> Vec<Vec<u8>> {
    let mut seed = Vec::new();
    for (index, (_, bytes)) in directory_files().iter().enumerate() {
        seed.push(index as u8);
        seed.extend((bytes.len() as u16).to_le_bytes());
        seed.extend(bytes);
    }
    image_directory_is_valid(&seed);
    vec![seed]
}

/// A seed that is refused at once would test little.
fn image_directory_is_valid(seed: &[u8]) {
    let directory = tempfile::tempdir_in(scratch()).expect("a directory can be made");
    for (name, bytes) in directory_files() {
        fs::write(directory.path().join(name), bytes).expect("a file can be written");
    }
    let assembly = assemble(directory.path(), sealed(), RestoreMode::Lazy).expect("the seed is valid");
    assert_eq!((assembly.lazy_pages, assembly.eager_pages), (PageCount(4), PageCount(2)), "{}", seed.len());
}

/// Parts of image files in any order and of any name.
#[derive(Arbitrary, Debug)]
struct Parts {
    files: u8,
    parts: Vec<Part>,
}

#[derive(Arbitrary, Debug)]
struct Part {
    name: Name,
    crc: Option<u32>,
    size: u64,
    offset: u64,
    data: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Name {
    Plain(u8),
    Any(String),
}

/// Images as a source sends them: nothing may be written but plain files inside
/// the directory, and no more than is allowed.
pub fn arriving_images(input: &[u8]) {
    const LIMIT: u64 = 4096;
    let Ok(parts) = Parts::arbitrary(&mut Unstructured::new(input)) else { return };
    let around = tempfile::tempdir_in(scratch()).expect("a directory can be made");
    let inside = around.path().join("images");
    fs::create_dir(&inside).expect("a directory can be made");
    fuzzing::images_arrive(
        &inside,
        LIMIT,
        parts.parts.into_iter().map(Part::into_sent).collect(),
        parts.files.into(),
    );
    assert_eq!(fs::read_dir(around.path()).map(Iterator::count).ok(), Some(1), "a file outside");
    let mut written = 0;
    for entry in fs::read_dir(&inside).expect("the directory is there").flatten() {
        let found = entry.metadata().expect("the file is there");
        assert!(found.is_file(), "{entry:?}");
        written += found.len();
    }
    assert!(written <= LIMIT, "{written} bytes were written");
}

impl Part {
    fn into_sent(self) -> ImageFile {
        let name = match self.name {
            Name::Plain(number) => format!("mm-{}.img", number % 3),
            Name::Any(name) => name,
        };
        let small = |number: u64| if number.is_multiple_of(4) { number } else { number % 64 };
        let crc = self.crc.unwrap_or_else(|| crc32fast::hash(&self.data));
        ImageFile { name, crc, size: small(self.size), offset: small(self.offset), data: self.data }
    }
}

pub(super) fn arriving_seeds() -> Vec<Vec<u8>> {
    (1..5u8)
        .map(|seed| (0..200u8).map(|index| index.wrapping_mul(seed.wrapping_mul(37)) ^ seed).collect())
        .collect()
}
