//! What one machine has to share out, and what each session takes of it: packing that never promises more than there is.

use std::collections::BTreeMap;

use meshfarm_protocol::profile::{
    Amount, GPU, GPU_MEMORY, HostClass, Requirement, VCPU, is_licence,
};

/// Amounts that tell what something is like. A session that asks for them takes nothing away from others.
const DESCRIBE: [&str; 2] = [GPU_MEMORY, "meshfarm:amount.cpu.mhz"];

/// What a session takes of its host besides a slot: some of each amount, by the amount's number. None is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    amounts: Vec<(usize, u64)>,
}

impl Share {
    fn get(&self, name: usize) -> u64 {
        let found = self.amounts.iter().find(|(known, _)| *known == name);
        found.map_or(0, |(_, amount)| *amount)
    }

    /// Whether both take some of the same.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.amounts.iter().any(|(name, _)| other.get(*name) > 0)
    }

    /// Whether it takes more of something than `other`.
    pub(crate) fn is_wider(&self, other: &Self) -> bool {
        self.amounts.iter().any(|(name, amount)| *amount > other.get(*name))
    }
}

/// Slots and amounts that can be promised, by the amounts' numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    slots: u64,
    amounts: Vec<u64>,
}

impl Budget {
    /// How many sessions of this share there is room for.
    pub(crate) fn room(&self, share: &Share) -> u32 {
        self.beside_slots(share).min(u32::try_from(self.slots).unwrap_or(u32::MAX))
    }

    /// How many sessions of this share there are amounts for, on whatever machine their slots are.
    pub(crate) fn beside_slots(&self, share: &Share) -> u32 {
        let each = share.amounts.iter().map(|(name, amount)| {
            // No amount of a share is zero.
            self.amounts.get(*name).map_or(0, |have| have / amount)
        });
        u32::try_from(each.fold(u64::MAX, u64::min)).unwrap_or(u32::MAX)
    }

    /// Count the amounts of `n` sessions to it that have their slots on another machine.
    pub(crate) fn take_in(&mut self, share: &Share, n: u32) {
        let slots = self.slots;
        self.give(share, n);
        self.slots = slots;
    }

    /// Promise the shares of `n` sessions. What is not there stays at nothing.
    pub(crate) fn take(&mut self, share: &Share, n: u32) {
        self.slots = self.slots.saturating_sub(u64::from(n));
        for (name, amount) in &share.amounts {
            if let Some(have) = self.amounts.get_mut(*name) {
                *have = have.saturating_sub(amount.saturating_mul(u64::from(n)));
            }
        }
    }

    /// Count the shares of `n` sessions to it.
    pub(crate) fn give(&mut self, share: &Share, n: u32) {
        self.slots = self.slots.saturating_add(u64::from(n));
        for (name, amount) in share.amounts.iter().filter(|_| n > 0) {
            if self.amounts.len() <= *name {
                self.amounts.resize(name + 1, 0);
            }
            let have = &mut self.amounts[*name];
            *have = have.saturating_add(amount.saturating_mul(u64::from(n)));
        }
    }

    /// What is left when `held` is taken away: nothing of what there is too little of.
    pub(crate) fn less(&self, held: &Self) -> Self {
        let mut left = self.clone();
        left.slots = left.slots.saturating_sub(held.slots);
        for (have, held) in left.amounts.iter_mut().zip(&held.amounts) {
            *have = have.saturating_sub(*held);
        }
        left
    }

    /// The larger of both, amount by amount.
    pub(crate) fn or(mut self, other: &Self) -> Self {
        self.slots = self.slots.max(other.slots);
        self.amounts.resize(self.amounts.len().max(other.amounts.len()), 0);
        for (have, other) in self.amounts.iter_mut().zip(&other.amounts) {
            *have = (*have).max(*other);
        }
        self
    }

    /// Whether all of `held` is there.
    pub(crate) fn covers(&self, held: &Self) -> bool {
        let have = self.amounts.iter().copied().chain(std::iter::repeat(0));
        held.slots <= self.slots && held.amounts.iter().zip(have).all(|(held, have)| *held <= have)
    }
}

/// What a machine has to share out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capacity {
    /// Names of amounts in lower case. None is ever removed, so that a share means the same on another day.
    names: Vec<String>,
    whole: Budget,
    slots: u32,
}

impl Capacity {
    /// The machine is this one now.
    pub(crate) fn set(&mut self, host: &HostClass) {
        self.slots = host.slots;
        self.whole = Budget { slots: host.slots.into(), amounts: vec![0; self.names.len()] };
        for (name, amount) in &host.amounts {
            let number = self.number(name).unwrap_or(self.names.len());
            if number == self.names.len() {
                self.names.push(name.to_ascii_lowercase());
                self.whole.amounts.push(0);
            }
            // An owner who sets more slots than there are processors shares these out on purpose: each slot counts
            // as one.
            let least =
                if name.eq_ignore_ascii_case(VCPU) { u64::from(host.slots) * 1000 } else { 0 };
            self.whole.amounts[number] = amount.0.max(least);
        }
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| known.eq_ignore_ascii_case(name))
    }

    /// Everything that the machine has.
    pub(crate) const fn whole(&self) -> &Budget {
        &self.whole
    }

    /// What a session of a step that asks for `requirement` takes: of everything that it asks for the least that will
    /// do. A step that says nothing of processors takes an even share of them, at least one; of memory and all else it
    /// takes nothing, because nothing is known.
    pub(crate) fn share(&self, requirement: &Requirement) -> Share {
        let mut share = Share::default();
        let mut says_vcpu = false;
        for (name, need) in &requirement.amounts {
            says_vcpu |= name.eq_ignore_ascii_case(VCPU);
            let describes = DESCRIBE.iter().any(|known| name.eq_ignore_ascii_case(known));
            if need.min == Amount(0) || describes {
                continue;
            }
            // Half a graphics card is one, because two sessions never see the same.
            let cards = need.min.0.div_ceil(1000).saturating_mul(1000);
            let asks = if name.eq_ignore_ascii_case(GPU) { cards } else { need.min.0 };
            // There is none of what has no number.
            let number = self.number(name).unwrap_or(usize::MAX >> 1);
            match share.amounts.iter_mut().find(|(known, _)| *known == number) {
                Some((_, most)) => *most = asks.max(*most),
                None => share.amounts.push((number, asks)),
            }
        }
        if let Some(vcpu) = self.number(VCPU).filter(|_| !says_vcpu) {
            let have = self.whole.amounts.get(vcpu).copied().unwrap_or_default();
            let even = have / u64::from(self.slots.max(1));
            share.amounts.extend((even > 0).then_some((vcpu, even)));
        }
        share
    }

    /// What of a share are floating licences.
    pub(crate) fn licences(&self, share: &Share) -> Share {
        let licence = |name: usize| self.names.get(name).is_some_and(|name| is_licence(name));
        let amounts = share.amounts.iter().filter(|(name, _)| licence(*name));
        Share { amounts: amounts.copied().collect() }
    }

    /// How much of an amount a share takes.
    pub(crate) fn amount(&self, share: &Share, name: &str) -> Amount {
        Amount(self.number(name).map_or(0, |number| share.get(number)))
    }

    /// A share's amounts by name.
    pub(crate) fn of_share(&self, share: &Share) -> BTreeMap<String, Amount> {
        self.named(share.amounts.iter().copied())
    }

    /// A budget's amounts by name.
    pub(crate) fn of_budget(&self, budget: &Budget) -> BTreeMap<String, Amount> {
        self.named(budget.amounts.iter().copied().enumerate())
    }

    fn named(&self, amounts: impl Iterator<Item = (usize, u64)>) -> BTreeMap<String, Amount> {
        let named =
            amounts.filter_map(|(n, amount)| Some((self.names.get(n)?.clone(), Amount(amount))));
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use meshfarm_protocol::profile::{AmountNeed, Level, MEMORY};
    use proptest::prelude::*;

    use super::*;

    const LICENCE: &str = "meshfarm:amount.licence.nuke";

    fn host(slots: u32, amounts: &[(&str, u64)]) -> HostClass {
        HostClass {
            count: 1,
            description: String::new(),
            amounts: amounts.iter().map(|(n, a)| ((*n).to_owned(), Amount(*a))).collect(),
            attributes: BTreeMap::new().into(),
            software: BTreeMap::new(),
            slots,
            speed: 1000,
            level: Level::S2,
        }
    }

    fn asks(amounts: &[(&str, u64)]) -> Requirement {
        let need = |min: u64| AmountNeed { min: Amount(min), max: None };
        let amounts = amounts.iter().map(|(n, a)| ((*n).to_owned(), need(*a)));
        Requirement { amounts: amounts.collect(), ..Requirement::default() }
    }

    #[test]
    fn what_is_not_asked_is_an_even_share_of_processors_and_nothing_else() {
        let share = |slots, vcpu: u64| {
            let host = host(slots, &[(VCPU, vcpu * 1000), (MEMORY, 64_000)]);
            let capacity = capacity(&host);
            let share = capacity.share(&Requirement::default());
            let takes = |name| capacity.amount(&share, name);
            (takes(VCPU), takes(MEMORY), capacity.whole().room(&share))
        };
        assert_eq!(share(8, 8), (Amount::whole(1), Amount(0), 8));
        assert_eq!(share(2, 8), (Amount::whole(4), Amount(0), 2));
        // More slots than processors: the owner wants so many at once.
        assert_eq!(share(8, 2), (Amount::whole(1), Amount(0), 8));
        let bare = capacity(&host(3, &[]));
        assert_eq!(bare.whole().room(&bare.share(&Requirement::default())), 3);
    }

    #[test]
    fn eight_cores_are_eight_and_sixty_percent_of_memory_is_there_once() {
        let host = host(8, &[(VCPU, 8000), (MEMORY, 100_000), (GPU, 2000), (GPU_MEMORY, 24_000)]);
        let capacity = capacity(&host);
        let room = |asked| capacity.whole().room(&capacity.share(&asks(asked)));
        assert_eq!(room(&[(VCPU, 8000)]), 1);
        assert_eq!(room(&[(VCPU, 3000)]), 2);
        assert_eq!(room(&[("AMOUNT.worker.Memory", 60_000)]), 1);
        assert_eq!(room(&[(GPU, 1000)]), 2);
        assert_eq!(room(&[(GPU, 500)]), 2, "half a card is one");
        assert_eq!(room(&[(GPU_MEMORY, 20_000)]), 8, "every card has it");
        assert_eq!(room(&[(LICENCE, 1000)]), 0);
    }

    fn capacity(host: &HostClass) -> Capacity {
        let mut capacity = Capacity::default();
        capacity.set(host);
        capacity
    }

    fn any_share() -> impl Strategy<Value = Vec<(&'static str, u64)>> {
        let amount = prop_oneof![Just(0u64), 1..3000u64, Just(u64::MAX)];
        let name = prop_oneof![Just(VCPU), Just(MEMORY), Just(GPU), Just(LICENCE)];
        prop::collection::vec((name, amount), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn promises_never_exceed_the_host_and_all_returns(
            (slots, vcpu, memory, gpu) in (0..9u32, 0..9000u64, 0..9000u64, 0..4u64),
            wishes in prop::collection::vec((any_share(), 0..5u32, any::<bool>()), 0..40),
        ) {
            let host = host(slots, &[(VCPU, vcpu), (MEMORY, memory), (GPU, gpu * 1000)]);
            let capacity = capacity(&host);
            let whole = capacity.whole();
            let (mut free, mut held) = (whole.clone(), Vec::new());
            for (asked, n, back) in wishes {
                let share = capacity.share(&asks(&asked));
                let granted = free.room(&share).min(n);
                free.take(&share, granted);
                held.push((share, granted));
                if back {
                    let (share, n) = held.swap_remove(held.len() / 2);
                    free.give(&share, n);
                }
                let mut sum = Budget::default();
                held.iter().for_each(|(share, n)| sum.give(share, *n));
                prop_assert!(whole.covers(&sum), "more is promised than there is");
                prop_assert_eq!(&whole.less(&sum), &free, "packing is not exact");
            }
            for (share, n) in held {
                free.give(&share, n);
            }
            prop_assert_eq!(&free, whole, "something was lost");
        }

        #[test]
        fn room_is_exact(asked in any_share(), slots in 0..9u32, memory in 0..9000u64) {
            let host = host(slots, &[(VCPU, 4000), (MEMORY, memory), (GPU, 2000), (LICENCE, 3000)]);
            let capacity = capacity(&host);
            let (share, whole) = (capacity.share(&asks(&asked)), capacity.whole());
            let held = |n: u32| {
                let mut held = Budget::default();
                held.give(&share, n);
                held
            };
            let n = whole.room(&share);
            prop_assert!(whole.covers(&held(n)));
            prop_assert!(!whole.covers(&held(n + 1)), "one more would fit");
        }
    }

    #[test]
    fn a_share_means_the_same_when_the_machine_has_changed() {
        let mut capacity = capacity(&host(4, &[(MEMORY, 8000), (VCPU, 4000)]));
        let share = capacity.share(&asks(&[(MEMORY, 3000)]));
        capacity.set(&host(4, &[("amount.worker.disk.scratch", 1), (VCPU, 4000)]));
        assert_eq!(capacity.amount(&share, MEMORY), Amount(3000));
        assert_eq!(capacity.whole().room(&share), 0);
        capacity.set(&host(4, &[(MEMORY, 6000), (VCPU, 4000)]));
        assert_eq!(capacity.whole().room(&share), 2);
    }

    #[test]
    fn wider_is_more_of_anything() {
        let host = host(8, &[(VCPU, 8000), (MEMORY, 8000)]);
        let capacity = capacity(&host);
        let share = |asked| capacity.share(&asks(asked));
        let names: BTreeSet<_> = capacity.of_share(&share(&[(MEMORY, 1)])).into_keys().collect();
        assert_eq!(names, BTreeSet::from([MEMORY.to_owned(), VCPU.to_owned()]));
        assert!(share(&[(VCPU, 8000)]).is_wider(&share(&[])));
        assert!(!share(&[]).is_wider(&share(&[])));
        assert!(share(&[(MEMORY, 1)]).is_wider(&share(&[(VCPU, 8000)])));
    }
}
