//! What a freeze will cost beside its pages, part by part.
//!
//! First principles: what CRIU's self-test took on each host, what is measured on the
//! workload, and how much larger than the self-test's process it is. Then the
//! [`experience`](super::experience) of earlier moves to the same destination corrects
//! each part. `docs/architecture.md` has the formula.

use super::dump_cost::TreeCost;
use crate::report::{DowntimeReport, PredictionReport, TreeReport, ms};
use std::time::Duration;

/// What CRIU's self-test took at the source.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalCost {
    /// To stop one process.
    pub freeze: Duration,
    /// To dump one process, memory apart, and what CRIU does with that inside the freeze.
    pub dump: Duration,
}

/// What the destination said, and the way there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RemoteCost {
    /// A restore and release of the self-test's process.
    pub(super) restore: Duration,
    /// There and back.
    pub(super) round_trip: Duration,
}

/// What one more of each costs, in milliseconds: the self-test has one process with one
/// thread. Measured with the demo's workload at 1, 8 and 32 processes.
mod each {
    pub(super) const PROCESS_FREEZE: f64 = 0.4;
    pub(super) const PROCESS_DUMP: f64 = 2.5;
    pub(super) const PROCESS_RESTORE: f64 = 4.0;
    pub(super) const PROCESS_RESUME: f64 = 2.0;
    pub(super) const THREAD_FREEZE: f64 = 0.05;
    pub(super) const THREAD_DUMP: f64 = 0.2;
    pub(super) const THREAD_RESTORE: f64 = 0.1;
    pub(super) const MAPPING_DUMP: f64 = 0.02;
    pub(super) const MAPPING_RESTORE: f64 = 0.01;
    pub(super) const DESCRIPTOR_DUMP: f64 = 0.05;
    pub(super) const DESCRIPTOR_RESTORE: f64 = 0.05;
}

/// What is done once in every freeze and no self-test does, in milliseconds: the
/// address's leaving, images through a checksum onto the wire, assembly, the journals'
/// lines, the opening of the destination's network. Measured where it was written.
mod once {
    pub(super) const DUMP: f64 = 10.0;
    pub(super) const IMAGES: f64 = 2.0;
    pub(super) const RESTORE: f64 = 5.0;
    pub(super) const RESUME: f64 = 10.0;
}

/// The forecast of one migration's freeze.
#[derive(Clone, Debug, Default)]
pub(super) struct Forecast {
    tree: TreeCost,
    /// From first principles, without the pages.
    principles: DowntimeReport,
    /// What experience adds to each part, and from how many moves.
    learned: DowntimeReport,
    lessons: usize,
    /// From first principles, with the pages: what the last prediction was made of.
    told: Option<DowntimeReport>,
}

impl Forecast {
    /// CRIU's dump, from first principles.
    pub(super) fn dump(&self) -> Duration {
        Duration::from_secs_f64(self.principles.dump_ms.max(0.0) / 1000.0)
    }

    pub(super) fn new(
        tree: TreeCost,
        here: LocalCost,
        there: RemoteCost,
        (learned, lessons): (DowntimeReport, usize),
    ) -> Forecast {
        let more = |count: u64| count.saturating_sub(1) as f64;
        let (processes, threads) = (more(tree.processes), tree.threads.saturating_sub(tree.processes) as f64);
        let (mappings, descriptors) = (tree.mappings as f64, tree.descriptors as f64);
        let principles = DowntimeReport {
            freeze_ms: ms(here.freeze) + processes * each::PROCESS_FREEZE + threads * each::THREAD_FREEZE,
            dump_ms: ms(here.dump + tree.smaps_walk)
                + once::DUMP
                + processes * each::PROCESS_DUMP
                + threads * each::THREAD_DUMP
                + mappings * each::MAPPING_DUMP
                + descriptors * each::DESCRIPTOR_DUMP,
            images_ms: ms(there.round_trip) + once::IMAGES,
            restore_ms: ms(there.restore)
                + once::RESTORE
                + processes * each::PROCESS_RESTORE
                + threads * each::THREAD_RESTORE
                + mappings * each::MAPPING_RESTORE
                + descriptors * each::DESCRIPTOR_RESTORE,
            resume_ms: ms(there.round_trip) + once::RESUME + processes * each::PROCESS_RESUME,
            ..DowntimeReport::default()
        };
        Forecast { tree, principles, learned, lessons, told: None }
    }

    /// What a scan of the page tables takes, seen a moment ago.
    pub(super) fn scan_took(&mut self, scan: Duration) {
        self.principles.final_scan_ms = ms(scan);
    }

    /// Everything but the pages.
    pub(super) fn fixed(&self) -> Duration {
        Duration::from_secs_f64(self.parts().total_ms().max(0.0) / 1000.0)
    }

    /// The prediction of a freeze now, in which the pages take `transfer`.
    pub(super) fn predict(&mut self, transfer: Duration) -> PredictionReport {
        let with_pages = |mut parts: DowntimeReport| {
            parts.final_transfer_ms += ms(transfer);
            parts
        };
        self.told = Some(with_pages(self.principles));
        PredictionReport {
            parts: with_pages(self.parts()),
            learned_ms: self.parts().total_ms() - self.principles.total_ms(),
            lessons: self.lessons,
            tree: TreeReport {
                processes: self.tree.processes,
                threads: self.tree.threads,
                mappings: self.tree.mappings,
                descriptors: self.tree.descriptors,
            },
        }
    }

    /// By how much first principles missed each part of what was measured.
    pub(super) fn missed(&self, measured: &DowntimeReport) -> Option<DowntimeReport> {
        self.told.map(|told| measured.zip(&told, |measured, told| measured - told))
    }

    /// Corrected; no part is below nothing.
    fn parts(&self) -> DowntimeReport {
        self.principles.zip(&self.learned, |part, learned| (part + learned).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(tree: TreeCost, learned: DowntimeReport) -> Forecast {
        let ms = Duration::from_millis;
        let here = LocalCost { freeze: ms(4), dump: ms(4) };
        let there = RemoteCost { restore: ms(5), round_trip: ms(1) };
        Forecast::new(tree, here, there, (learned, 1))
    }

    fn small() -> TreeCost {
        TreeCost { processes: 1, threads: 1, mappings: 30, descriptors: 4, smaps_walk: Duration::ZERO }
    }

    #[test]
    fn the_parts_sum_to_fixed_cost_and_pages() {
        let mut forecast = forecast(small(), DowntimeReport { dump_ms: 7.0, ..DowntimeReport::default() });
        forecast.scan_took(Duration::from_millis(2));
        let said = forecast.predict(Duration::from_millis(30));
        assert!((said.parts.total_ms() - ms(forecast.fixed()) - 30.0).abs() < 0.01);
        assert!((said.learned_ms - 7.0).abs() < 0.01);
        assert_eq!(said.parts.final_scan_ms, 2.0);
    }

    #[test]
    fn a_larger_tree_costs_more() {
        let none = DowntimeReport::default();
        let alone = forecast(small(), none).fixed();
        for larger in [
            TreeCost { processes: 2, threads: 2, ..small() },
            TreeCost { threads: 9, ..small() },
            TreeCost { mappings: 500, ..small() },
            TreeCost { descriptors: 500, ..small() },
            TreeCost { smaps_walk: Duration::from_millis(3), ..small() },
        ] {
            assert!(forecast(larger, none).fixed() > alone, "{larger:?}");
        }
    }

    #[test]
    fn what_was_missed_is_counted_from_first_principles() {
        let learned = DowntimeReport { resume_ms: 500.0, freeze_ms: -400.0, ..DowntimeReport::default() };
        let mut forecast = forecast(small(), learned);
        assert_eq!(forecast.missed(&learned), None, "nothing was predicted");
        assert_eq!(forecast.predict(Duration::ZERO).parts.freeze_ms, 0.0, "no part is below nothing");
        let measured = DowntimeReport { freeze_ms: 6.0, ..forecast.principles };
        let missed = forecast.missed(&measured).unwrap();
        assert_eq!(missed, DowntimeReport { freeze_ms: 2.0, ..DowntimeReport::default() });
    }
}
