//! Image files of any content: an error or a result, never a panic.

use ferry_engine::images::file::{self, FormatError, Kind, Messages};
use ferry_engine::images::proto::{CoreEntry, MmEntry, PagemapEntry, PagemapHead, PstreeEntry};
use ferry_engine::images::{assemble, tree};
use ferry_engine::page_store::PageStore;
use ferry_transport::units::Bytes;
use ferry_transport::wire::control::RestoreMode;
use proptest::prelude::*;

fn entries() -> impl Strategy<Value = Vec<(u64, u64, Option<u32>)>> {
    prop::collection::vec((any::<u64>(), any::<u64>(), any::<Option<u32>>()), 0..6)
}

proptest! {
    #[test]
    fn any_bytes(kind in prop::sample::select(vec![Kind::Inventory, Kind::Mm, Kind::Core, Kind::Pagemap]),
                 bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut image = file::begin(kind);
        image.extend(&bytes);
        for bytes in [&bytes, &image] {
            if let Ok(messages) = Messages::of(bytes, kind) {
                let _ = messages.clone().rest::<MmEntry>();
                let _ = messages.clone().rest::<CoreEntry>();
                let _ = messages.clone().rest::<PstreeEntry>();
                let _ = messages.rest::<PagemapEntry>();
            }
        }
    }

    #[test]
    fn absurd_pagemaps(entries in entries()) {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
        let mut inventory = file::begin(Kind::Inventory);
        file::append(&mut inventory, &ferry_engine::images::proto::InventoryEntry { img_version: 2 });
        write("inventory.img", inventory);
        write("pstree.img", file::begin(Kind::Pstree));
        prop_assert!(tree::processes(dir.path()).unwrap().is_empty());
        let mut map = file::begin(Kind::Pagemap);
        file::append(&mut map, &PagemapHead { pages_id: 1 });
        for (vaddr, pages, flags) in entries {
            let entry = PagemapEntry { vaddr, compat_nr_pages: 0, in_parent: None, flags, nr_pages: Some(pages) };
            file::append(&mut map, &entry);
        }
        write("pagemap-7.img", map);
        let mut pstree = file::begin(Kind::Pstree);
        file::append(&mut pstree, &PstreeEntry { pid: 7, ppid: 0, pgid: 7, sid: 7, threads: vec![7] });
        write("pstree.img", pstree);
        let sealed = PageStore::new(Bytes::MIB).unwrap().seal(&[]).unwrap();
        prop_assert!(assemble(dir.path(), sealed, RestoreMode::Eager).is_err());
    }
}

#[test]
fn truncation_is_named() {
    let mut map = file::begin(Kind::Pagemap);
    file::append(&mut map, &PagemapHead { pages_id: 300 });
    for len in 9..map.len() {
        let messages = Messages::of(&map[..len], Kind::Pagemap).unwrap();
        assert_eq!(messages.rest::<PagemapHead>(), Err(FormatError::Truncated(len)));
    }
    assert_eq!(Messages::of(&map, Kind::Mm).unwrap_err(), FormatError::Magic(Kind::Mm));
}

#[test]
fn absurd_counts_are_refused_before_they_are_stored() {
    // Empty messages, four bytes each: the cheapest way to ask for many.
    let mut many = file::begin(Kind::Pstree);
    many.resize(many.len() + 4 * (file::MAX_MESSAGES + 1), 0);
    let messages = Messages::of(&many, Kind::Pstree).unwrap();
    assert_eq!(messages.rest::<PstreeEntry>(), Err(FormatError::TooMany));
    let mut large = file::begin(Kind::Mm);
    large.extend(u32::MAX.to_le_bytes());
    let messages = Messages::of(&large, Kind::Mm).unwrap();
    assert_eq!(messages.rest::<MmEntry>(), Err(FormatError::TooLarge(u32::MAX as usize)));
}
