//! What a peer's pages may do to the store; the kernel's events, and what comes through
//! its sockets, to the pager.

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use ferry_engine::fuzzing::{self, PagerEvent};
use ferry_engine::page_store::{Content, Extent, PageStore};
use ferry_transport::page::{PAGE_SIZE, PageAddr, PageChunk, PageRange, Round, Run, RunKind, SpaceId};
use ferry_transport::units::{self, PageCount};
use ferry_transport::wire::compress::Encoding;
use ferry_transport::wire::control::FinalSpace;
use ferry_transport::wire::frame;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Chunks as frames carry them, then a final state that need not fit them.
#[derive(Arbitrary, Debug)]
struct Transfer {
    chunks: Vec<Chunk>,
    spaces: Vec<Space>,
}

#[derive(Arbitrary, Debug)]
struct Chunk {
    space: u8,
    round: u8,
    runs: Vec<(u64, u16, bool)>,
}

#[derive(Arbitrary, Debug)]
struct Space {
    space: u8,
    pid: u8,
    present: Vec<(u64, u64)>,
}

/// The page store: any chunk that a frame can carry, any final state.
pub fn page_store(input: &[u8]) {
    let Ok(transfer) = Transfer::arbitrary(&mut Unstructured::new(input)) else { return };
    let limit = units::Bytes(4 << 20);
    let store = PageStore::new(limit).expect("a store can be made");
    for chunk in &transfer.chunks {
        if let Some(chunk) = chunk.as_sent() {
            let _ = store.put(&chunk);
        }
    }
    let spaces: Vec<FinalSpace> = transfer.spaces.iter().map(Space::as_sent).collect();
    let Ok(sealed) = store.seal(&spaces) else { return };
    assert!(sealed.data_pages().bytes().0 <= limit.0, "more than was allowed is held");
    for space in &sealed.spaces {
        for pair in space.extents.windows(2) {
            assert!(pair[0].pages.end() <= pair[1].pages.start.address(), "out of order: {pair:?}");
        }
        for extent in &space.extents {
            if let Content::Arena(offset) = extent.content {
                let end = offset.checked_add(extent.pages.count.bytes().0);
                assert!(end.is_some_and(|end| end <= sealed.arena_len), "beyond the arena: {extent:?}");
            }
        }
    }
}

impl Chunk {
    /// `None` where no frame could carry it.
    fn as_sent(&self) -> Option<PageChunk> {
        let mut runs = Vec::new();
        let (mut next, mut data_pages) = (0u64, 0usize);
        for (gap, count, has_content) in &self.runs {
            // Mostly near each other, sometimes far apart.
            let gap = if gap.is_multiple_of(5) { *gap } else { gap % 64 };
            let start = next.checked_add(gap)?;
            let kind = if *has_content { RunKind::Data } else { RunKind::Zero };
            let count = u32::from(*count % 40) + 1;
            data_pages += if *has_content { count as usize } else { 0 };
            runs.push(Run { start: PageAddr::from_index(start), count, kind });
            next = start.checked_add(u64::from(count))?;
        }
        let data = Bytes::from(vec![self.round; data_pages * PAGE_SIZE]);
        let chunk = PageChunk {
            space: SpaceId(u32::from(self.space % 4)),
            round: Round(self.round.into()),
            runs,
            data,
        };
        let sent = frame::encode(&chunk, Encoding::Raw).ok()?;
        frame::decode(&[&sent.head[..], &sent.payload[..]].concat().into()).ok().map(|(chunk, _)| chunk)
    }
}

impl Space {
    fn as_sent(&self) -> FinalSpace {
        let range = |&(start, count): &(u64, u64)| PageRange {
            start: PageAddr::containing(start),
            count: PageCount(if count.is_multiple_of(3) { count } else { count % 512 }),
        };
        FinalSpace {
            space: SpaceId(u32::from(self.space % 4)),
            image_pid: u32::from(self.pid),
            present: self.present.iter().map(range).collect(),
        }
    }
}

pub(super) fn store_seeds() -> Vec<Vec<u8>> {
    noise(300)
}

/// What is known of a space's missing pages, through any events.
#[derive(Arbitrary, Debug)]
struct Filling {
    extents: Vec<(u8, u8)>,
    hot: Vec<(u16, u8)>,
    events: Vec<(u8, u16, u16, u8)>,
}

/// The pager's book-keeping. Addresses are those of a user's space, as the kernel
/// tells them; their order and overlap are not to be relied on.
pub fn pager(input: &[u8]) {
    let Ok(filling) = Filling::arbitrary(&mut Unstructured::new(input)) else { return };
    let page = PAGE_SIZE as u64;
    let range =
        |start: u64, count: u64| PageRange { start: PageAddr::from_index(start), count: PageCount(count) };
    let (mut next, mut offset, mut extents) = (16, 0, Vec::new());
    for (gap, count) in filling.extents {
        let (start, count) = (next + u64::from(gap), u64::from(count) + 1);
        extents.push(Extent { pages: range(start, count), content: Content::Arena(offset) });
        (next, offset) = (start + count, offset + count * page);
    }
    let hot: Vec<PageRange> =
        filling.hot.iter().map(|&(start, count)| range(start.into(), count.into())).collect();
    let at = |number: u16| u64::from(number) * page;
    let events = filling.events.into_iter().map(|(kind, from, to, count)| {
        let len = (u64::from(count) + 1) * page;
        match kind % 4 {
            0 => PagerEvent::Fault(at(from)),
            1 => PagerEvent::Fill(len),
            2 => PagerEvent::Gone(at(from), at(from) + len),
            // The kernel refuses an mremap onto itself.
            _ if at(from) < at(to) + len && at(to) < at(from) + len => PagerEvent::Fault(at(from)),
            _ => PagerEvent::Moved(at(from), at(to), len),
        }
    });
    fuzzing::pager(&extents, &hot, events);
}

pub(super) fn pager_seeds() -> Vec<Vec<u8>> {
    noise(400)
}

/// The most messages of one input: all of them fit into a socket's buffer.
const MAX_MESSAGES: usize = 64;
/// In a message's first byte: that a descriptor comes with it. The rest is its length.
const WITH_DESCRIPTOR: u8 = 0x80;
/// What CRIU says when all is restored.
const RESTORE_FINISHED: i32 = 0x5253_5446;

/// What comes through the pager's sockets: a plan, behind its length, then messages on
/// `lazy-pages.socket`, each behind a byte that says how long it is.
pub fn pager_sockets(input: &[u8]) {
    fuzzing::pager_message(input);
    let Some((len, rest)) = input.split_first_chunk() else { return };
    let Some((plan, mut rest)) = rest.split_at_checked(u16::from_le_bytes(*len).into()) else { return };
    let (ours, criu) = UnixStream::pair().expect("a pair of sockets");
    for _ in 0..MAX_MESSAGES {
        let Some((head, after)) = rest.split_first() else { break };
        let len = usize::from(head & !WITH_DESCRIPTOR).clamp(1, 16);
        let Some((message, after)) = after.split_at_checked(len) else { break };
        rest = after;
        let descriptor = [criu.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptor)];
        let rights = if head & WITH_DESCRIPTOR == 0 { &rights[..0] } else { &rights[..] };
        let sent =
            sendmsg::<()>(criu.as_raw_fd(), &[IoSlice::new(message)], rights, MsgFlags::MSG_DONTWAIT, None);
        sent.expect("the buffer has room");
    }
    // Copies of it may be on their way: closing alone would not be the end.
    criu.shutdown(Shutdown::Both).expect("a socket can be shut down");
    fuzzing::lazy_pages_socket(plan, ours);
}

pub(super) fn socket_seeds() -> Vec<Vec<u8>> {
    let word = |word: i32| [&[4], &word.to_le_bytes()[..]].concat();
    let descriptor = || vec![WITH_DESCRIPTOR | 1, 0];
    let seed = |plan: &[u8], messages: &[Vec<u8>]| {
        [&(plan.len() as u16).to_le_bytes()[..], plan, &messages.concat()].concat()
    };
    let (one, three) = (fuzzing::plan(1, 8), fuzzing::plan(3, 1000));
    let drained: Vec<u8> = [4u64, 100, 2, 0, 7, 1, 5000].iter().flat_map(|word| word.to_le_bytes()).collect();
    vec![
        seed(&one, &[word(1), descriptor(), word(RESTORE_FINISHED)]),
        // A zombie, a process that the plan does not know, an end before the end.
        seed(&three, &[word(2), descriptor(), word(-3), word(77), descriptor(), word(1)]),
        seed(&three, &[word(3), descriptor(), word(1), descriptor(), word(2), descriptor()]),
        drained,
    ]
}

/// Structure is made from any bytes: all that counts is that they differ.
fn noise(len: usize) -> Vec<Vec<u8>> {
    (1..6u32)
        .map(|seed| {
            (0..len as u32)
                .map(|index| (index.wrapping_mul(2_654_435_761).wrapping_mul(seed) >> 13) as u8)
                .collect()
        })
        .collect()
}
