//! Room that is kept for the most urgent task that does not fit now, so that it does not starve behind narrower ones.
//!
//! As in EASY: the first in line gets a reservation at the moment when enough is expected to be free, and others may
//! be started before it as long as they do not delay that: they are expected to end by then, or take only what will
//! still be there beside it. (Lifka 1995, "The ANL/IBM SP Scheduling System".) Expectations may be wrong; whatever
//! happens, the reservation is made anew, and what runs longer than expected is expected to end at any moment.

use meshfarm_protocol::id::{JobId, Millis, StepNo};

use crate::capacity::{Budget, Share};

/// Sessions that are expected to return their shares at some moment.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) at: Millis,
    pub(crate) share: Share,
    pub(crate) n: u32,
    /// Whether that moment is more than a guess. What came behind the first in line and runs for nobody knows how long
    /// leaves no room for more of its kind.
    pub(crate) sure: bool,
}

/// What is kept for the first in line.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    /// Whose it is.
    pub(crate) of: (JobId, StepNo),
    /// When its first task is expected to start.
    pub(crate) at: Millis,
    /// What a task of it takes.
    pub(crate) share: Share,
    /// What will be there at that moment beside it.
    extra: Budget,
}

impl Reservation {
    /// Room for `n` tasks of this share, the first as soon as there is any, when `left` is free now and the rest
    /// comes free as `ends` say. None when it never does.
    pub(crate) fn new(
        of: (JobId, StepNo),
        (share, n): (Share, u32),
        left: Budget,
        mut ends: Vec<End>,
    ) -> Option<Self> {
        ends.sort_by_key(|end| end.at);
        let (mut free, mut extra) = (left.clone(), left);
        let mut ends = ends.into_iter().peekable();
        while let Some(end) = ends.next() {
            free.give(&end.share, end.n);
            extra.give(&end.share, if end.sure { end.n } else { 0 });
            let more = ends.peek().is_some_and(|next| next.at == end.at);
            if !more && free.room(&share) > 0 {
                extra.take(&share, n);
                return Some(Self { of, at: end.at, share, extra });
            }
        }
        None
    }

    /// Of `n` sessions that would start now, how many may: those that end in time, or touch nothing that is kept.
    pub(crate) fn admit(&mut self, share: &Share, n: u32, ends_at: Millis) -> u32 {
        if ends_at <= self.at {
            return n;
        }
        let n = self.spare(share).min(n);
        self.extra.take(share, n);
        n
    }

    /// How many sessions of any length it leaves room for.
    pub(crate) fn spare(&self, share: &Share) -> u32 {
        self.extra.room(share)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meshfarm_protocol::profile::{
        Amount, AmountNeed, HostClass, Level, MEMORY, Requirement, VCPU,
    };

    use super::*;
    use crate::capacity::Capacity;

    fn host() -> HostClass {
        HostClass {
            count: 1,
            description: String::new(),
            amounts: BTreeMap::from([
                (VCPU.to_owned(), Amount::whole(8)),
                (MEMORY.to_owned(), Amount::whole(100)),
            ]),
            attributes: BTreeMap::new().into(),
            software: BTreeMap::new(),
            slots: 8,
            speed: 1000,
            level: Level::S2,
        }
    }

    fn capacity() -> Capacity {
        let mut capacity = Capacity::default();
        capacity.set(&host());
        capacity
    }

    fn share(vcpu: u64, memory: u64) -> Share {
        let need = |n| AmountNeed { min: Amount::whole(n), max: None };
        let amounts = [(VCPU.to_owned(), need(vcpu)), (MEMORY.to_owned(), need(memory))];
        let amounts = BTreeMap::from(amounts);
        capacity().share(&Requirement { amounts, ..Requirement::default() })
    }

    /// Eight cores, six of them taken until these moments; a task of `vcpu` cores is first in line.
    fn reserved(vcpu: u64, ends: [u64; 3]) -> Reservation {
        let taken = share(2, 10);
        let mut left = capacity().whole().clone();
        left.take(&taken, 3);
        let end = |at| End { at: Millis(at), share: taken.clone(), n: 1, sure: true };
        let ends = ends.map(end);
        let of = (JobId([1; 16]), StepNo(0));
        Reservation::new(of, (share(vcpu, 0), 1), left, ends.into()).unwrap()
    }

    #[test]
    fn it_begins_when_enough_is_expected_to_be_free() {
        assert_eq!(reserved(8, [10, 30, 20]).at, Millis(30));
        assert_eq!(reserved(4, [10, 30, 20]).at, Millis(10));
        assert_eq!(reserved(4, [20, 20, 20]).at, Millis(20));
    }

    #[test]
    fn what_ends_in_time_or_touches_nothing_that_is_kept_may_start() {
        let mut kept = reserved(6, [10, 30, 20]);
        assert_eq!((kept.at, kept.admit(&share(1, 0), 2, Millis(20))), (Millis(20), 2));
        // Of the machine's processors two are taken until later, and six are kept.
        assert_eq!(kept.admit(&share(1, 0), 2, Millis(21)), 0);
        let only_memory = share(0, 40);
        assert_eq!(kept.admit(&only_memory, 4, Millis(99)), 2);
        assert_eq!(kept.admit(&only_memory, 4, Millis(99)), 0, "the same room is given once");
    }

    #[test]
    fn what_is_not_promised_to_come_is_not_waited_for() {
        let of = (JobId([1; 16]), StepNo(0));
        assert!(Reservation::new(of, (share(8, 0), 1), Budget::default(), Vec::new()).is_none());
    }
}
