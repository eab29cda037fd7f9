//! What one machine has to share out, and what each session takes of it: packing that never promises more than there is.

use std::collections::BTreeMap;

use meshfarm_protocol::profile::{Amount, GPU, GPU_MEMORY, HostClass, Requirement, VCPU};

/// Amounts that tell what something is like. A session that asks for them takes nothing away from others.
const DESCRIBE: [&str; 2] = [GPU_MEMORY, "meshfarm:amount.cpu.mhz"];

/// What a session takes of its host besides a slot. Names are in lower case, and no amount is zero.
///
/// Of everything that the step asks for it takes the least that will do. A step that says nothing of processors
/// takes an even share of them, at least one; of memory and all else it takes nothing, because nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    amounts: Vec<(String, u64)>,
}

impl Share {
    /// What a session of a step that asks for `requirement` takes of `host`.
    pub(crate) fn of(requirement: &Requirement, host: &HostClass) -> Self {
        let mut amounts = BTreeMap::new();
        for (name, need) in &requirement.amounts {
            let name = name.to_ascii_lowercase();
            if need.min > Amount(0) && !DESCRIBE.contains(&name.as_str()) {
                // Half a graphics card is one, because two sessions never see the same.
                let cards = need.min.0.div_ceil(1000).saturating_mul(1000);
                let whole = if name == GPU { cards } else { need.min.0 };
                let most: &mut u64 = amounts.entry(name).or_default();
                *most = whole.max(*most);
            }
        }
        let says_vcpu = requirement.amounts.keys().any(|name| name.eq_ignore_ascii_case(VCPU));
        if let Some(vcpu) = processors(host).filter(|_| !says_vcpu) {
            amounts.insert(VCPU.to_owned(), vcpu / u64::from(host.slots.max(1)));
        }
        amounts.retain(|_, amount| *amount > 0);
        Self { amounts: amounts.into_iter().collect() }
    }

    /// So much of an amount, in thousandths.
    pub(crate) fn get(&self, name: &str) -> Amount {
        let found = self.amounts.iter().find(|(known, _)| known == name);
        Amount(found.map_or(0, |(_, amount)| *amount))
    }

    /// Whether it takes more of something than `other`.
    pub(crate) fn is_wider(&self, other: &Self) -> bool {
        self.amounts.iter().any(|(name, amount)| *amount > other.get(name).0)
    }

    /// Its amounts by name.
    pub(crate) fn amounts(&self) -> BTreeMap<String, Amount> {
        self.amounts.iter().map(|(name, amount)| (name.clone(), Amount(*amount))).collect()
    }
}

/// An owner who sets more slots than there are processors shares these out on purpose: then each slot counts as one.
fn processors(host: &HostClass) -> Option<u64> {
    let (_, vcpu) = host.amounts.iter().find(|(name, _)| name.eq_ignore_ascii_case(VCPU))?;
    Some(vcpu.0.max(u64::from(host.slots) * 1000))
}

/// Slots and amounts that can be promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    slots: u64,
    amounts: BTreeMap<String, u64>,
}

impl Budget {
    /// Everything that one host has.
    pub(crate) fn of(host: &HostClass) -> Self {
        let named = host.amounts.iter().map(|(name, amount)| (name.to_ascii_lowercase(), amount.0));
        let mut amounts: BTreeMap<_, _> = named.collect();
        amounts.extend(processors(host).map(|vcpu| (VCPU.to_owned(), vcpu)));
        Self { slots: u64::from(host.slots), amounts }
    }

    /// How many sessions of this share there is room for.
    pub(crate) fn room(&self, share: &Share) -> u32 {
        let each = share.amounts.iter().map(|(name, amount)| {
            // No amount of a share is zero.
            self.amounts.get(name).map_or(0, |have| have / amount)
        });
        u32::try_from(each.fold(self.slots, u64::min)).unwrap_or(u32::MAX)
    }

    /// Promise the shares of `n` sessions. What is not there stays at nothing.
    pub(crate) fn take(&mut self, share: &Share, n: u32) {
        self.slots = self.slots.saturating_sub(u64::from(n));
        for (name, amount) in &share.amounts {
            if let Some(have) = self.amounts.get_mut(name) {
                *have = have.saturating_sub(amount.saturating_mul(u64::from(n)));
            }
        }
    }

    /// Count the shares of `n` sessions to it.
    pub(crate) fn give(&mut self, share: &Share, n: u32) {
        if n == 0 {
            return;
        }
        self.slots = self.slots.saturating_add(u64::from(n));
        for (name, amount) in &share.amounts {
            let have = self.amounts.entry(name.clone()).or_default();
            *have = have.saturating_add(amount.saturating_mul(u64::from(n)));
        }
    }

    /// What is left when `held` is taken away: nothing of what there is too little of.
    pub(crate) fn less(&self, held: &Self) -> Self {
        let mut left = self.clone();
        left.slots = left.slots.saturating_sub(held.slots);
        for (name, amount) in &held.amounts {
            if let Some(have) = left.amounts.get_mut(name) {
                *have = have.saturating_sub(*amount);
            }
        }
        left
    }

    /// The larger of both, amount by amount.
    pub(crate) fn or(mut self, other: &Self) -> Self {
        self.slots = self.slots.max(other.slots);
        for (name, amount) in &other.amounts {
            let have = self.amounts.entry(name.clone()).or_default();
            *have = (*have).max(*amount);
        }
        self
    }

    /// Whether all of `held` is there.
    pub(crate) fn covers(&self, held: &Self) -> bool {
        let has = |(name, amount): (&String, &u64)| {
            *amount <= self.amounts.get(name).copied().unwrap_or_default()
        };
        held.slots <= self.slots && held.amounts.iter().all(has)
    }

    /// Amounts in it by name.
    pub(crate) fn amounts(&self) -> BTreeMap<String, Amount> {
        self.amounts.iter().map(|(name, amount)| (name.clone(), Amount(*amount))).collect()
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
            attributes: BTreeMap::new(),
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
            let share = Share::of(&Requirement::default(), &host);
            (share.get(VCPU), share.get(MEMORY), Budget::of(&host).room(&share))
        };
        assert_eq!(share(8, 8), (Amount::whole(1), Amount(0), 8));
        assert_eq!(share(2, 8), (Amount::whole(4), Amount(0), 2));
        // More slots than processors: the owner wants so many at once.
        assert_eq!(share(8, 2), (Amount::whole(1), Amount(0), 8));
        let bare = host(3, &[]);
        assert_eq!(Budget::of(&bare).room(&Share::of(&Requirement::default(), &bare)), 3);
    }

    #[test]
    fn eight_cores_are_eight_and_sixty_percent_of_memory_is_there_once() {
        let host = host(8, &[(VCPU, 8000), (MEMORY, 100_000), (GPU, 2000), (GPU_MEMORY, 24_000)]);
        let room = |asked| Budget::of(&host).room(&Share::of(&asks(asked), &host));
        assert_eq!(room(&[(VCPU, 8000)]), 1);
        assert_eq!(room(&[(VCPU, 3000)]), 2);
        assert_eq!(room(&[("AMOUNT.worker.Memory", 60_000)]), 1);
        assert_eq!(room(&[(GPU, 1000)]), 2);
        assert_eq!(room(&[(GPU, 500)]), 2, "half a card is one");
        assert_eq!(room(&[(GPU_MEMORY, 20_000)]), 8, "every card has it");
        assert_eq!(room(&[(LICENCE, 1000)]), 0);
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
            let whole = Budget::of(&host);
            let (mut free, mut held) = (whole.clone(), Vec::new());
            for (asked, n, back) in wishes {
                let share = Share::of(&asks(&asked), &host);
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
            prop_assert_eq!(free, whole, "something was lost");
        }

        #[test]
        fn room_is_exact(asked in any_share(), slots in 0..9u32, memory in 0..9000u64) {
            let host = host(slots, &[(VCPU, 4000), (MEMORY, memory), (GPU, 2000), (LICENCE, 3000)]);
            let (share, whole) = (Share::of(&asks(&asked), &host), Budget::of(&host));
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
    fn wider_is_more_of_anything() {
        let host = host(8, &[(VCPU, 8000), (MEMORY, 8000)]);
        let share = |asked| Share::of(&asks(asked), &host);
        let names: BTreeSet<_> = share(&[(MEMORY, 1)]).amounts().into_keys().collect();
        assert_eq!(names, BTreeSet::from([MEMORY.to_owned(), VCPU.to_owned()]));
        assert!(share(&[(VCPU, 8000)]).is_wider(&share(&[])));
        assert!(!share(&[]).is_wider(&share(&[])));
        assert!(share(&[(MEMORY, 1)]).is_wider(&share(&[(VCPU, 8000)])));
    }
}
