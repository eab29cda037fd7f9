//! Who has used how much lately: projects of the same urgency take turns by that.

use std::collections::BTreeMap;

use meshfarm_protocol::id::{Millis, TenantId};
use meshfarm_protocol::job::StepSpec;
use meshfarm_protocol::profile::VCPU;

/// What was used counts half after this long: a night's work is forgotten by noon, and nobody who was greedy in the
/// morning has to wait until the evening.
const HALF_LIFE: Millis = Millis::seconds(3600);

/// Use decays in steps of this length.
const STEP: Millis = Millis::seconds(60);

/// Steps in a half-life.
const STEPS: u64 = HALF_LIFE.0 / STEP.0;

/// What is left after one step, in 65536ths: its sixtieth power is a half.
const LEFT: u128 = 64_783;

/// What runs now counts as if it had run so much longer, so that slots handed out at one moment count at once.
const AHEAD: Millis = Millis::seconds(60);

/// A project gives up slots to another one only when it is ahead by so much, in core-milliseconds: each change of
/// hands may cost the content of another scene.
pub(crate) const HYSTERESIS: u64 = 2 * 60_000;

/// Number of an account: one project of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Account(usize);

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// Core-milliseconds until `at`.
    used: u64,
    /// Cores of what runs now, in thousandths.
    rate: u64,
    at: Millis,
}

impl Use {
    fn advance(&mut self, now: Millis) {
        let ran = self.rate.saturating_mul(now.since(self.at).0) / 1000;
        let steps = (now.0 / STEP.0).saturating_sub(self.at.0 / STEP.0);
        self.used = decayed(self.used.saturating_add(ran), steps);
        self.at = self.at.max(now);
    }
}

/// What is left of `used` after so many steps.
fn decayed(used: u64, steps: u64) -> u64 {
    let halves = u32::try_from(steps / STEPS).unwrap_or(u32::MAX);
    let used = used.checked_shr(halves).unwrap_or(0);
    let left = (0..steps % STEPS).fold(u128::from(used), |used, _| (used * LEFT) >> 16);
    u64::try_from(left).unwrap_or(u64::MAX)
}

/// Cores that a task of a step counts for, in thousandths: what it asks for, or one.
pub(crate) fn cores(step: &StepSpec) -> u64 {
    let mut amounts = step.requirement.amounts.iter();
    let asked = amounts.find(|(name, _)| name.eq_ignore_ascii_case(VCPU));
    asked.map_or(1000, |(_, need)| need.min.0.clamp(1, 1 << 32))
}

/// What every project has used lately, of our own slots and of other sites'.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fair {
    now: Millis,
    names: BTreeMap<(TenantId, String), Account>,
    accounts: Vec<Use>,
}

impl Fair {
    /// Time passes.
    pub(crate) fn set_now(&mut self, now: Millis) {
        self.now = self.now.max(now);
    }

    /// The account of a project.
    pub(crate) fn account(&mut self, tenant: TenantId, project: &str) -> Account {
        let next = Account(self.accounts.len());
        let account = *self.names.entry((tenant, project.to_owned())).or_insert(next);
        if account == next {
            self.accounts.push(Use { at: self.now, ..Use::default() });
        }
        account
    }

    /// A task begins to count.
    pub(crate) fn begin(&mut self, account: Account, cores: u64) {
        self.change(account, |rate| rate.saturating_add(cores));
    }

    /// A task counts no more.
    pub(crate) fn end(&mut self, account: Account, cores: u64) {
        self.change(account, |rate| rate.saturating_sub(cores));
    }

    fn change(&mut self, Account(n): Account, rate: impl FnOnce(u64) -> u64) {
        if let Some(account) = self.accounts.get_mut(n) {
            account.advance(self.now);
            account.rate = rate(account.rate);
        }
    }

    /// A task that was done before a restart, at `at`, and had run for `wall`.
    pub(crate) fn recall(&mut self, Account(n): Account, cores: u64, (at, wall): (Millis, Millis)) {
        if let Some(account) = self.accounts.get_mut(n) {
            let steps = (self.now.0 / STEP.0).saturating_sub(at.0 / STEP.0);
            let used = decayed(cores.saturating_mul(wall.0) / 1000, steps);
            account.used = account.used.saturating_add(used);
        }
    }

    /// Core-milliseconds that count against a project now: less comes first.
    pub(crate) fn used(&self, Account(n): Account) -> u64 {
        let Some(mut account) = self.accounts.get(n).copied() else {
            return 0;
        };
        account.advance(self.now);
        account.used.saturating_add(account.rate.saturating_mul(AHEAD.0) / 1000)
    }

    /// Panic when the cores that count for each account are not these.
    pub(crate) fn check(&self, running: &BTreeMap<Account, u64>) {
        for (n, account) in self.accounts.iter().enumerate() {
            let runs = running.get(&Account(n)).copied().unwrap_or_default();
            assert_eq!(account.rate, runs, "a project pays for what does not run");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn use_halves_in_an_hour_and_is_gone_after_days() {
        assert_eq!(decayed(1_000_000, 0), 1_000_000);
        let half = decayed(1_000_000, 59);
        assert!((505_000..507_000).contains(&half), "{half}");
        assert_eq!(decayed(1_000_000, 60), 500_000);
        assert_eq!(decayed(1_000_000, 120), 250_000);
        assert_eq!(decayed(u64::MAX, 60 * 64), 0);
        assert_eq!(decayed(u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn two_cores_for_a_quarter_of_an_hour_count_half_an_hour_of_one() {
        let mut fair = Fair::default();
        fair.set_now(Millis(HOUR));
        let (film, advert) = (TenantId([1; 16]), TenantId([2; 16]));
        let account = fair.account(film, "film");
        assert_eq!(account, fair.account(film, "film"));
        assert_ne!(account, fair.account(film, "advert"));
        assert_ne!(account, fair.account(advert, "film"));
        fair.begin(account, 2000);
        assert_eq!(fair.used(account), 2 * AHEAD.0, "slots count as soon as they are taken");
        // In steps, as a site lives: what was used early has decayed a little by now.
        for minute in 1..=15 {
            fair.set_now(Millis(HOUR + minute * 60_000));
            fair.begin(account, 0);
        }
        fair.end(account, 2000);
        let used = fair.used(account);
        assert!((1_600_000..1_800_000).contains(&used), "{used}");
        fair.set_now(Millis(2 * HOUR + 15 * 60_000));
        assert_eq!(fair.used(account), used / 2);
    }

    #[test]
    fn what_was_done_before_a_restart_is_recalled_by_its_age() {
        let mut fair = Fair::default();
        fair.set_now(Millis(10 * HOUR));
        let account = fair.account(TenantId([1; 16]), "film");
        fair.recall(account, 1000, (Millis(9 * HOUR), Millis(600_000)));
        assert_eq!(fair.used(account), 300_000);
        fair.recall(account, u64::MAX, (Millis(10 * HOUR), Millis(u64::MAX)));
        assert!(fair.used(account) > 300_000);
    }
}
