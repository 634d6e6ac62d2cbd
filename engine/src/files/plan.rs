//! From what the destination has to what is there now: pure, on two scans.
//!
//! Names are compared, objects are followed: a file that got another name (a log that
//! was rotated) is linked to it there, and its content is not sent again. In order:
//! what is still needed and loses its name is *kept*; then names that are gone, or
//! stand for another object now, are removed; then what is there now is made, linked
//! or looked at, directories before what is in them.

use super::entry::ObjectKey;
use super::path::RelPath;
use super::scan::Seen;
use std::collections::HashMap;

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Objects that are needed under another name; the number is the index here.
    pub(super) keep: Vec<RelPath>,
    /// Names that go, each with all that is beneath it.
    pub(super) remove: Vec<RelPath>,
    /// Entries that are new, or may have changed: an index into the new scan each.
    pub(super) work: Vec<(usize, How)>,
    /// Pairs of indices, old and new, of entries that are what they were.
    pub(super) same: Vec<(usize, usize)>,
    /// Indices of old entries that are gone, or stand for something else now.
    pub(super) gone: Vec<usize>,
}

/// How an entry comes about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The destination does not have it.
    Make,
    /// It is another name of what is, or will be by then, under this one.
    Link(RelPath),
    /// It is another name of what was kept as this number.
    Kept(usize),
    /// It is there, with this index in the old scan; content or attributes may have changed.
    Look(usize),
}

/// Compares. `again`: whether to look at an entry although its stamp is the same.
pub(super) fn plan(old: &[Seen], new: &[Seen], again: impl Fn(&Seen) -> bool) -> Plan {
    let mut plan = Plan::default();
    let (mut gone, mut appeared) = (Vec::new(), Vec::new());
    // Names of objects that stay, for links to them.
    let mut staying: HashMap<ObjectKey, usize> = HashMap::new();
    let (mut o, mut n) = (0, 0);
    while o < old.len() || n < new.len() {
        let order = match (old.get(o), new.get(n)) {
            (Some(old), Some(new)) => old.path.cmp(&new.path),
            (Some(_), None) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        };
        match order {
            std::cmp::Ordering::Less => {
                gone.push(o);
                o += 1;
            }
            std::cmp::Ordering::Greater => {
                appeared.push(n);
                n += 1;
            }
            std::cmp::Ordering::Equal => {
                let (before, now) = (&old[o], &new[n]);
                let directories = before.stamp.is_directory() && now.stamp.is_directory();
                let one_object = before.stamp.key == now.stamp.key && before.stamp.same_type(&now.stamp);
                if directories || one_object {
                    if now.stamp.links > 1 && !directories {
                        staying.entry(now.stamp.key).or_insert(n);
                    }
                    if before.settled && before.stamp == now.stamp && !again(now) {
                        plan.same.push((o, n));
                    } else {
                        plan.work.push((n, How::Look(o)));
                    }
                } else {
                    gone.push(o);
                    appeared.push(n);
                }
                o += 1;
                n += 1;
            }
        }
    }
    plan.appeared(old, new, &gone, &appeared, &staying);
    plan.remove(old, &gone);
    plan.gone = gone;
    plan.work.sort_by_key(|(index, _)| *index);
    plan
}

impl Plan {
    fn appeared(
        &mut self,
        old: &[Seen],
        new: &[Seen],
        gone: &[usize],
        appeared: &[usize],
        staying: &HashMap<ObjectKey, usize>,
    ) {
        let files = |index: &&usize| !new[**index].stamp.is_directory();
        let wanted: HashMap<ObjectKey, ()> =
            appeared.iter().filter(files).map(|index| (new[*index].stamp.key, ())).collect();
        // Objects whose every old name goes, and that have a new one.
        let mut leaving: HashMap<ObjectKey, usize> = HashMap::new();
        for index in gone {
            let seen = &old[*index];
            if wanted.contains_key(&seen.stamp.key) && !seen.stamp.is_directory() {
                leaving.entry(seen.stamp.key).or_insert(*index);
            }
        }
        let mut kept: HashMap<ObjectKey, usize> = HashMap::new();
        let mut made: HashMap<ObjectKey, usize> = HashMap::new();
        for index in appeared {
            let seen = &new[*index];
            let key = seen.stamp.key;
            if seen.stamp.is_directory() {
                self.work.push((*index, How::Make));
                continue;
            }
            let was = |old: &Seen| old.stamp.same_type(&seen.stamp);
            let how = if let Some(first) = made.get(&key) {
                How::Link(new[*first].path.clone())
            } else if let Some(name) = staying.get(&key) {
                How::Link(new[*name].path.clone())
            } else if let Some(from) = leaving.get(&key).filter(|from| was(&old[**from])) {
                let number = *kept.entry(key).or_insert_with(|| {
                    self.keep.push(old[*from].path.clone());
                    self.keep.len() - 1
                });
                How::Kept(number)
            } else {
                made.insert(key, *index);
                How::Make
            };
            self.work.push((*index, how));
        }
    }

    /// The uppermost of the names that are gone take the others with them.
    fn remove(&mut self, old: &[Seen], gone: &[usize]) {
        let mut above: Option<&RelPath> = None;
        for index in gone {
            let seen = &old[*index];
            if above.is_some_and(|above| seen.path.is_beneath(above)) {
                continue;
            }
            self.remove.push(seen.path.clone());
            above = seen.stamp.is_directory().then_some(&seen.path);
        }
    }
}
