//! What goes is old, unused or too much, and nothing that is in use.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use meshfarm_protocol::id::{ChunkId, TenantId};

use super::*;

const DAY: u64 = 86_400_000;
const NOW: Millis = Millis(100 * DAY);
const ME: SiteId = SiteId([1; 32]);
const OTHER: SiteId = SiteId([2; 32]);

fn rules() -> Rules {
    Rules { me: ME, keep: Millis(14 * DAY), total: None, tenant: u64::MAX, wanted: 0 }
}

fn root(number: u8, site: SiteId, pinned: bool, days_ago: u64) -> Known {
    let owner = Owner { site, tenant: Some(TenantId([site.0[0]; 16])) };
    let used = Millis(NOW.0 - days_ago * DAY);
    Known { root: ChunkId([number; 32]), owner, pinned, used }
}

/// What goes of roots that use so many bytes each and nothing together.
fn chosen(rules: &Rules, roots: &[(Known, u64)], strays: &[(u32, u64)]) -> (Vec<u8>, u32) {
    let mut sorted: Vec<_> = roots.iter().map(|(root, _)| *root).collect();
    sort(&mut sorted);
    let size = |root: &Known| roots.iter().find(|(r, _)| r.root == root.root).unwrap().1;
    let bytes: Vec<_> = sorted.iter().map(size).collect();
    let choice = choose(NOW, rules, &sorted, &bytes, strays);
    let mut names: Vec<_> = choice.forget.iter().map(|n| sorted[*n].root.0[0]).collect();
    names.sort_unstable();
    (names, choice.strays_before)
}

fn seconds_ago(days: u64) -> u32 {
    u32::try_from((NOW.0 - days * DAY) / 1000).unwrap()
}

#[test]
fn what_was_unused_for_too_long_goes_and_what_is_pinned_stays() {
    let roots = [
        (root(1, OTHER, false, 15), 10),
        (root(2, OTHER, false, 13), 10),
        (root(3, OTHER, true, 99), 10),
        (root(4, ME, false, 15), 10),
    ];
    let strays = [(seconds_ago(20), 5), (seconds_ago(15), 5), (seconds_ago(1), 5)];
    assert_eq!(chosen(&rules(), &roots, &strays), (vec![1, 4], seconds_ago(15) + 1));
}

#[test]
fn a_tenant_of_another_site_over_its_quota_loses_its_oldest_unused_content() {
    let roots = [
        (root(1, OTHER, false, 3), 40),
        (root(2, OTHER, false, 2), 40),
        (root(3, OTHER, true, 9), 40),
        (root(4, ME, false, 9), 400),
    ];
    assert_eq!(chosen(&Rules { tenant: 100, ..rules() }, &roots, &[]).0, [1]);
    assert_eq!(chosen(&Rules { tenant: 50, ..rules() }, &roots, &[]).0, [1, 2]);
    assert_eq!(chosen(&Rules { tenant: 5, ..rules() }, &roots, &[]).0, [1, 2]);
}

#[test]
fn too_much_of_everything_and_a_full_disk_take_the_oldest_first() {
    let roots =
        [(root(1, OTHER, false, 5), 40), (root(2, ME, false, 3), 40), (root(3, ME, true, 9), 40)];
    let strays = [(seconds_ago(4), 10), (seconds_ago(2), 10)];
    let total = |total| Rules { total: Some(total), ..rules() };
    assert_eq!(chosen(&total(140), &roots, &strays), (vec![], 0));
    assert_eq!(chosen(&total(139), &roots, &strays), (vec![1], 0));
    assert_eq!(chosen(&total(95), &roots, &strays), (vec![1], seconds_ago(4) + 1));
    let wanted = Rules { wanted: 1000, ..rules() };
    assert_eq!(chosen(&wanted, &roots, &strays), (vec![1, 2], seconds_ago(2) + 1));
}

#[test]
fn results_go_when_they_have_arrived_but_nothing_that_was_just_used() {
    let mut result = root(1, OTHER, false, 1);
    result.owner.tenant = None;
    let mut fresh = result;
    (fresh.root, fresh.used) = (ChunkId([2; 32]), Millis(NOW.0 - 1000));
    let pinned = Known { root: ChunkId([3; 32]), pinned: true, ..result };
    let all = Rules { wanted: 1000, ..rules() };
    assert_eq!(chosen(&all, &[(result, 1), (fresh, 1), (pinned, 1)], &[]).0, [1]);
}

type Stored = (Vec<Spot>, Vec<(Known, BTreeSet<u32>)>, Rules);

/// Chunks by their marks, and roots that use some of them.
fn world() -> impl Strategy<Value = Stored> {
    let spot = (0..40_u32, 1..100_u32, 0..100_u64).prop_map(|(mark, span, days)| Spot {
        mark,
        span,
        born: seconds_ago(days),
    });
    let used = prop::collection::btree_set(0..40_u32, 0..12);
    let root = (any::<u8>(), any::<bool>(), any::<bool>(), 0..100_u64, used).prop_map(
        |(number, mine, pinned, days, used)| {
            (root(number, if mine { ME } else { OTHER }, pinned, days), used)
        },
    );
    let roots = prop::collection::vec(root, 0..8).prop_map(|roots| {
        let by_name: BTreeMap<_, _> = roots.into_iter().map(|r| (r.0.root, r)).collect();
        by_name.into_values().collect::<Vec<_>>()
    });
    let limit = || prop_oneof![Just(None), (0..2000_u64).prop_map(Some)];
    let rules = (limit(), limit(), limit()).prop_map(|(total, tenant, wanted)| Rules {
        total,
        tenant: tenant.unwrap_or(u64::MAX),
        wanted: wanted.unwrap_or(0),
        ..rules()
    });
    (prop::collection::vec(spot, 0..40), roots, rules)
}

proptest! {
    #[test]
    fn nothing_in_use_ever_goes_and_room_is_made_where_it_can_be((spots, roots, rules) in world()) {
        let mut sorted: Vec<_> = roots.iter().map(|(root, _)| *root).collect();
        sort(&mut sorted);
        let used_by = |n: usize| &roots.iter().find(|(r, _)| r.root == sorted[n].root).unwrap().1;
        let marks = |n: usize| {
            let cids: Vec<_> = used_by(n)
                .iter()
                .map(|mark| {
                    let mut cid = [0; 32];
                    cid[..4].copy_from_slice(&mark.to_be_bytes());
                    ChunkId(cid)
                })
                .collect();
            Marks::of(&cids)
        };
        let mut census = Census::new(spots.clone());
        for n in 0..sorted.len() {
            census.charge(n, &marks(n));
        }
        let (before, bytes) = (census.used(), census.bytes(sorted.len()));
        let strays = census.strays();
        let all: u64 = spots.iter().map(|spot| u64::from(spot.span)).sum();
        prop_assert_eq!(bytes.iter().sum::<u64>() + strays.iter().map(|s| s.1).sum::<u64>(), all);

        let choice = choose(NOW, &rules, &sorted, &bytes, &strays);
        let kept: Vec<_> = (0..sorted.len()).filter(|n| !choice.forget.contains(n)).collect();
        census.clear();
        for n in &kept {
            census.charge(*n, &marks(*n));
        }
        let (goes, n, freed) = census.goes(&before, choice.strays_before);

        for root in choice.forget.iter().map(|n| &sorted[*n]) {
            prop_assert!(!root.pinned && NOW.since(root.used) >= RECENT);
        }
        for n in &kept {
            prop_assert!(used_by(*n).iter().all(|mark| goes.binary_search(mark).is_err()));
            let root = &sorted[*n];
            prop_assert!(root.pinned || NOW.since(root.used) < rules.keep || !n_may_go(root));
        }
        prop_assert!(n >= goes.len() as u64 && freed <= all);
        // Where too much is left, there is nothing left that could go.
        let left = all - freed;
        let may_still = kept.iter().any(|n| n_may_go(&sorted[*n]) && bytes[*n] > 0)
            || strays.iter().any(|(born, _)| *born >= choice.strays_before);
        let alone = roots.iter().all(|(a, x)| roots.iter().all(|(b, y)| a.root == b.root || x.is_disjoint(y)));
        if alone && may_still {
            prop_assert!(rules.total.is_none_or(|total| left <= total) && freed >= rules.wanted);
        }
    }
}

fn n_may_go(root: &Known) -> bool {
    !root.pinned && NOW.since(root.used) >= RECENT
}
