//! Receipts: what a lease used and costs, signed by its lender and answered by its borrower, in one chain for each pair.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::{AttemptId, LeaseId, MeshId, Millis, SiteId, TenantId};
use crate::lease::Usage;
use crate::profile::Level;
use crate::seal::{self, Signature, SigningKey};

/// Signing context of receipts: what the lender signs.
const RECEIPT: &str = "meshfarm v1 receipt";

/// Signing context of verdicts: what the borrower signs.
const VERDICT: &str = "meshfarm v1 verdict";

/// The layout version that this program writes.
pub const RECEIPT_VERSION: u16 = 1;

/// A receipt is for so many attempts at most: their ids are most of its bytes.
pub const MAX_RECEIPT_ATTEMPTS: usize = 512;

/// A longer encoded receipt is refused.
const MAX_RECEIPT_BYTES: usize = 16 * 1024;

/// A longer encoded verdict is refused.
const MAX_VERDICT_BYTES: usize = 1024;

/// Longest reason of a borrower that does not agree, in bytes.
const MAX_WHY: usize = 256;

/// How much later than it is a borrower may hear that a task runs or has ended, in one receipt.
pub const SLACK: Millis = Millis::seconds(10);

/// How many more bytes of outputs than it has found a borrower accepts without a word.
const OUTPUT_SLACK: u64 = 1 << 20;

/// A receipt over more than this is absurd: a thousand million units.
const MAX_AMOUNT: Money = Money(1_000_000_000_000);

/// Milliseconds of an hour.
const HOUR: u64 = 3_600_000;

/// Money in thousandths of the mesh's own unit: sites must agree on sums, so no floating point. For people and in
/// JSON it is a decimal number in quotes, such as `"9.80"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(pub u64);

impl Money {
    /// Both together, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left of it, at least nothing.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// This `n` times over, saturating.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }

    /// Whether it is none.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 1000, self.0 % 1000);
        match rest % 10 {
            0 => write!(f, "{whole}.{:02}", rest / 10),
            _ => write!(f, "{whole}.{rest:03}"),
        }
    }
}

/// A text that is no amount of money.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no amount: write such as 10, 9.80 or 0.005")]
pub struct NoMoney(String);

impl std::str::FromStr for Money {
    type Err = NoMoney;

    fn from_str(text: &str) -> Result<Self, NoMoney> {
        let wrong = || NoMoney(text.to_owned());
        let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(rest) || rest.len() > 3 {
            return Err(wrong());
        }
        if text.ends_with('.') {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_too_large| wrong())?;
        let rest: u64 = format!("{rest:0<3}").parse().map_err(|_too_large| wrong())?;
        let all = whole.checked_mul(1000).and_then(|all| all.checked_add(rest));
        all.filter(|all| *all <= MAX_AMOUNT.0).map(Self).ok_or_else(wrong)
    }
}

impl Serialize for Money {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() { out.collect_str(self) } else { out.serialize_u64(self.0) }
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Money;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount such as 10, 9.80 or 0.005")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Money, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, whole: u64) -> Result<Money, E> {
                self.visit_str(&whole.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, whole: i64) -> Result<Money, E> {
                self.visit_str(&whole.to_string())
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Money, E> {
                self.visit_str(&number.to_string())
            }
        }
        if from.is_human_readable() {
            from.deserialize_any(Visitor)
        } else {
            u64::deserialize(from).map(Self)
        }
    }
}

/// What a lender asks for its slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For an hour of processor time.
    pub core_hour: Money,
    /// For an hour of a graphics card.
    pub card_hour: Money,
}

impl Price {
    /// Whether nothing is asked.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.core_hour.is_zero() && self.card_hour.is_zero()
    }

    /// What was used costs so much, saturating. A part of a thousandth is not asked: a receipt is never over more than its
    /// tasks cost.
    #[must_use]
    pub fn of(&self, used: &Used) -> Money {
        Money(self.exactly(used).0 / HOUR)
    }

    /// What was used costs exactly so much, saturating.
    #[must_use]
    pub fn exactly(&self, used: &Used) -> Exact {
        let part = |time: Millis, price: Money| u128::from(time.0) * u128::from(price.0);
        let core = part(used.core, self.core_hour);
        let all = core.saturating_add(part(used.card, self.card_hour));
        Exact(u64::try_from(all).unwrap_or(u64::MAX))
    }
}

/// Money to the millisecond: a thousandth for an hour is so many thousandths and milliseconds. Costs of tasks add up in
/// it without loss, however short they are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Exact(pub u64);

impl Exact {
    /// Both together, saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Whether it is none.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// In thousandths; a part of one counts whole.
    #[must_use]
    pub const fn money(self) -> Money {
        Money(self.0.div_ceil(HOUR))
    }
}

/// On what terms slots are granted: what was granted is what is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The mesh in whose unit it is charged; all zero where the two sites share none, as within a site.
    pub mesh: MeshId,
    /// The price.
    pub price: Price,
    /// Processors that each task has, in thousandths: no more than these are charged, whatever it used.
    pub cores: u32,
    /// Graphics cards that each task has.
    pub cards: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self { mesh: MeshId([0; 32]), price: Price::default(), cores: 1000, cards: 0 }
    }
}

/// What some attempts used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// Attempts whose results were taken.
    pub done: u32,
    /// Attempts that failed. They are counted, and nothing else of them is.
    pub failed: u32,
    /// Processor time, at most that of the processors that each task was granted.
    pub core: Millis,
    /// Time of graphics cards: wall time of each card that was granted.
    pub card: Millis,
    /// Peak memory of a task in bytes.
    pub peak_memory: u64,
    /// Bytes of content that the tasks read; counted once for each lease, and not charged.
    pub content: u64,
    /// Bytes of their outputs; not charged.
    pub output: u64,
    /// Wall time of all tasks together.
    pub wall: Millis,
}

impl Used {
    /// What one attempt used whose result was taken, on these terms.
    #[must_use]
    pub fn of(usage: &Usage, terms: &Terms) -> Self {
        let most = u128::from(usage.wall.0) * u128::from(terms.cores) / 1000;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Self {
            done: 1,
            core: Millis(usage.cpu.0.min(most)),
            card: usage.wall.times(terms.cards.into()),
            peak_memory: usage.peak_memory,
            output: usage.output_bytes,
            wall: usage.wall,
            ..Self::default()
        }
    }

    /// An attempt that has failed.
    #[must_use]
    pub fn failed() -> Self {
        Self { failed: 1, ..Self::default() }
    }

    /// Both together, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            done: self.done.saturating_add(other.done),
            failed: self.failed.saturating_add(other.failed),
            core: self.core.plus(other.core),
            card: self.card.plus(other.card),
            peak_memory: self.peak_memory.max(other.peak_memory),
            content: self.content.saturating_add(other.content),
            output: self.output.saturating_add(other.output),
            wall: self.wall.plus(other.wall),
        }
    }

    /// The most that somebody may say who means this: a tenth more, and [`SLACK`] of every processor and card, because
    /// what a site hears of another one is late.
    #[must_use]
    pub fn at_most(&self, terms: &Terms) -> Self {
        let more = |time: Millis, parts: u64| {
            time.plus(Millis(time.0 / 10)).plus(Millis(SLACK.times(parts).0 / 1000))
        };
        Self {
            core: more(self.core, terms.cores.into()),
            card: more(self.card, u64::from(terms.cards) * 1000),
            wall: more(self.wall, 1000),
            output: self.output.saturating_add(self.output / 10).saturating_add(OUTPUT_SLACK),
            ..*self
        }
    }

    /// The first figure of which this has more than `own`, in words. Content is only the lender's word, and peak
    /// memory costs nothing.
    #[must_use]
    pub fn exceeds(&self, own: &Self) -> Option<String> {
        let seconds = |what: &str, here: Millis, there: Millis| {
            let text = |time: Millis| format!("{}.{:03} s", time.0 / 1000, time.0 % 1000);
            (here > there)
                .then(|| format!("{what} {}, of which {} is right", text(here), text(there)))
        };
        let number = |what: &str, here: u64, there: u64| {
            (here > there).then(|| format!("{here} {what}, of which {there} are right"))
        };
        number("tasks done", self.done.into(), own.done.into())
            .or_else(|| number("tasks failed", self.failed.into(), own.failed.into()))
            .or_else(|| seconds("processor time", self.core, own.core))
            .or_else(|| seconds("card time", self.card, own.card))
            .or_else(|| seconds("wall time", self.wall, own.wall))
            .or_else(|| number("bytes of outputs", self.output, own.output))
    }
}

/// What a lender says that some attempts under one lease used and cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Layout version of this record.
    pub version: u16,
    /// The mesh in whose unit it counts.
    pub mesh: MeshId,
    /// Who lent.
    pub lender: SiteId,
    /// Who borrowed.
    pub borrower: SiteId,
    /// Its place among all receipts of this lender for this borrower, counted from zero.
    pub sequence: u64,
    /// [`receipt_hash`] of the one before it; all zero in the first.
    #[serde(with = "serde_bytes")]
    pub previous: [u8; 32],
    /// When it was made, by the lender's clock.
    pub at: Millis,
    /// The lease.
    pub lease: LeaseId,
    /// Whose job it was.
    pub tenant: TenantId,
    /// The isolation that the jails had.
    pub isolation: Level,
    /// The price, as the lease was granted.
    pub price: Price,
    /// What was used.
    pub used: Used,
    /// What the lender waives of the price: the free part of a month.
    pub waived: Money,
    /// What is owed.
    pub amount: Money,
    /// The attempts that it is for. Each is in one receipt.
    pub attempts: Vec<AttemptId>,
}

/// What a borrower says to a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// [`receipt_hash`] of the receipt.
    #[serde(with = "serde_bytes")]
    pub receipt: [u8; 32],
    /// When, by the borrower's clock.
    pub at: Millis,
    /// Its own figures, when it does not agree.
    pub contested: Option<Contested>,
}

/// The figures of a borrower that does not agree with a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contested {
    /// What was used.
    pub used: Used,
    /// What is owed.
    pub amount: Money,
    /// What it does not agree with, in words.
    pub why: String,
}

/// A receipt with its signatures, as it is sent, kept and shown to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// An encoded [`Receipt`].
    #[serde(with = "serde_bytes")]
    pub receipt: Vec<u8>,
    /// By the lender's key, over `receipt`.
    pub lender: Signature,
    /// What the borrower says; none before it has answered.
    pub verdict: Option<SignedVerdict>,
}

/// A borrower's word to a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedVerdict {
    /// An encoded [`Verdict`].
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// By the borrower's key, over `body`.
    pub signature: Signature,
}

/// Why a receipt is worth nothing. Nothing was changed; blame whoever sent it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Worthless {
    /// Not a receipt, or not one that this program knows.
    #[error("it is malformed")]
    Malformed,
    /// Its figures do not make its amount.
    #[error("its amount is not what its figures cost")]
    Sum,
    /// Nobody ever used so much.
    #[error("its figures are absurd")]
    Absurd,
    /// It names an attempt twice, or not as many as it counts.
    #[error("it does not name each of its attempts once")]
    Attempts,
    /// The lender has not signed it.
    #[error("it is not signed by its lender")]
    LenderSignature,
    /// The borrower has not signed its answer.
    #[error("its answer is not signed by its borrower")]
    BorrowerSignature,
    /// The answer is to another receipt, or says more than is owed.
    #[error("its answer is to something else")]
    Verdict,
}

/// The name of an encoded receipt: the next one names it, and its answer does.
#[must_use]
pub fn receipt_hash(receipt: &[u8]) -> [u8; 32] {
    seal::content_hash(receipt)
}

/// The lender's signature of an encoded receipt.
#[must_use]
pub fn sign_receipt(receipt: &[u8], key: &SigningKey) -> Signature {
    seal::sign(key, RECEIPT, receipt)
}

/// The borrower's signature of an encoded verdict.
#[must_use]
pub fn sign_verdict(verdict: &[u8], key: &SigningKey) -> Signature {
    seal::sign(key, VERDICT, verdict)
}

/// An encoded receipt read, and its figures looked at. Its signature is not.
///
/// # Errors
/// When it is malformed or contradicts itself.
pub fn read_receipt(bytes: &[u8]) -> Result<Receipt, Worthless> {
    let receipt: Receipt =
        codec::decode(bytes, MAX_RECEIPT_BYTES).map_err(|_bytes| Worthless::Malformed)?;
    if receipt.version != RECEIPT_VERSION || receipt.lender == receipt.borrower {
        return Err(Worthless::Malformed);
    }
    let n = receipt.attempts.len();
    let distinct: BTreeSet<_> = receipt.attempts.iter().collect();
    let counted = u64::from(receipt.used.done) + u64::from(receipt.used.failed);
    if n == 0 || n > MAX_RECEIPT_ATTEMPTS || distinct.len() != n || counted != n as u64 {
        return Err(Worthless::Attempts);
    }
    let whole = receipt.price.of(&receipt.used);
    if whole > MAX_AMOUNT || receipt.waived > whole {
        return Err(Worthless::Absurd);
    }
    if receipt.amount != whole.less(receipt.waived) {
        return Err(Worthless::Sum);
    }
    Ok(receipt)
}

fn read_verdict(bytes: &[u8], receipt: &[u8], amount: Money) -> Result<Verdict, Worthless> {
    let verdict: Verdict =
        codec::decode(bytes, MAX_VERDICT_BYTES).map_err(|_bytes| Worthless::Malformed)?;
    let fair = verdict
        .contested
        .as_ref()
        .is_none_or(|own| own.amount <= amount && own.why.len() <= MAX_WHY);
    if verdict.receipt != receipt_hash(receipt) || !fair {
        return Err(Worthless::Verdict);
    }
    Ok(verdict)
}

impl Receipt {
    /// What is owed, once the borrower has answered: what both sides say is owed at least.
    #[must_use]
    pub fn owed(&self, verdict: &Verdict) -> Money {
        verdict.contested.as_ref().map_or(self.amount, |own| own.amount.min(self.amount))
    }
}

impl Contested {
    /// Figures that differ, and why, shortened to what an answer has room for.
    #[must_use]
    pub fn new(used: Used, amount: Money, mut why: String) -> Self {
        why.truncate(why.floor_char_boundary(MAX_WHY));
        Self { used, amount, why }
    }
}

impl Entry {
    /// What it says. Signatures are not looked at; see [`Self::verify`].
    ///
    /// # Errors
    /// When a part is malformed or contradicts itself or the other.
    pub fn read(&self) -> Result<(Receipt, Option<Verdict>), Worthless> {
        let receipt = read_receipt(&self.receipt)?;
        let verdict = match &self.verdict {
            Some(verdict) => Some(read_verdict(&verdict.body, &self.receipt, receipt.amount)?),
            None => None,
        };
        Ok((receipt, verdict))
    }

    /// What it says, after every signature on it was checked against the sites that it names.
    ///
    /// # Errors
    /// The first reason why it is worth nothing.
    pub fn verify(&self) -> Result<(Receipt, Option<Verdict>), Worthless> {
        let (receipt, verdict) = self.read()?;
        seal::verify(&receipt.lender.0, RECEIPT, &self.receipt, &self.lender)
            .map_err(|_forged| Worthless::LenderSignature)?;
        if let Some(signed) = &self.verdict {
            seal::verify(&receipt.borrower.0, VERDICT, &signed.body, &signed.signature)
                .map_err(|_forged| Worthless::BorrowerSignature)?;
        }
        Ok((receipt, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lender() -> SigningKey {
        SigningKey::from_seed(&[2; 32])
    }

    fn borrower() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn receipt() -> Receipt {
        let price = Price { core_hour: Money(60), card_hour: Money(1000) };
        let used = Used {
            done: 1,
            failed: 1,
            core: Millis::seconds(3600),
            card: Millis::seconds(1800),
            ..Used::default()
        };
        Receipt {
            version: RECEIPT_VERSION,
            mesh: MeshId([3; 32]),
            lender: lender().site(),
            borrower: borrower().site(),
            sequence: 0,
            previous: [0; 32],
            at: Millis(5),
            lease: LeaseId([4; 16]),
            tenant: TenantId([5; 16]),
            isolation: Level::S2,
            price,
            used,
            waived: Money(60),
            amount: Money(500),
            attempts: vec![AttemptId([6; 16]), AttemptId([7; 16])],
        }
    }

    fn entry(receipt: &Receipt, contested: Option<Contested>) -> Entry {
        let receipt = codec::encode(receipt);
        let verdict = Verdict { receipt: receipt_hash(&receipt), at: Millis(6), contested };
        let body = codec::encode(&verdict);
        let signature = sign_verdict(&body, &borrower());
        let lender = sign_receipt(&receipt, &lender());
        Entry { receipt, lender, verdict: Some(SignedVerdict { body, signature }) }
    }

    #[test]
    fn money_is_read_and_written_as_people_do() {
        for (text, money) in [("10", 10_000), ("9.80", 9_800), ("0.005", 5), ("1.2", 1_200)] {
            assert_eq!(text.parse(), Ok(Money(money)));
        }
        let shown = [0, 5, 10, 9_800, 12_345].map(|n| Money(n).to_string());
        assert_eq!(shown, ["0.00", "0.005", "0.01", "9.80", "12.345"]);
        for wrong in ["", ".5", "5.", "1.2345", "-1", "1e3", "+1", "99999999999999999999", "1,5"] {
            assert!(wrong.parse::<Money>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_price_is_for_hours_and_no_receipt_is_over_more_than_its_tasks() {
        let price = Price { core_hour: Money(1000), card_hour: Money(0) };
        let of = |ms| price.of(&Used { core: Millis(ms), ..Used::default() });
        assert_eq!([of(3_600_000), of(3_599), of(3_600)], [Money(1000), Money(0), Money(1)]);
        let each = price.exactly(&Used { core: Millis(100), ..Used::default() });
        let all = (0..100).fold(Exact(0), |sum, _| sum.plus(each));
        assert_eq!((all.money(), of(10_000)), (Money(3), Money(2)));
        let all = Used { core: Millis(u64::MAX), card: Millis(u64::MAX), ..Used::default() };
        let dear = Price { core_hour: Money(u64::MAX), card_hour: Money(u64::MAX) };
        assert_eq!(dear.of(&all), Money(u64::MAX / HOUR));
    }

    #[test]
    fn no_more_processors_are_charged_than_were_granted() {
        let usage = Usage { wall: Millis(1000), cpu: Millis(9000), ..Usage::default() };
        let terms = Terms { cores: 2500, cards: 2, ..Terms::default() };
        let used = Used::of(&usage, &terms);
        assert_eq!((used.core, used.card), (Millis(2500), Millis(2000)));
    }

    #[test]
    fn an_entry_holds_as_long_as_nothing_of_it_is_changed() {
        let whole = entry(&receipt(), None);
        let (read, verdict) = whole.verify().unwrap();
        assert_eq!(read.owed(&verdict.unwrap()), Money(500));
        let mut changed = whole.clone();
        changed.receipt[40] ^= 1;
        assert!(changed.verify().is_err());
        let mut other = whole.clone();
        other.lender = sign_receipt(&whole.receipt, &borrower());
        assert_eq!(other.verify(), Err(Worthless::LenderSignature));
        let mut other = whole.clone();
        if let Some(verdict) = &mut other.verdict {
            verdict.signature = sign_verdict(&verdict.body, &lender());
        }
        assert_eq!(other.verify(), Err(Worthless::BorrowerSignature));
        let mut mixed = whole;
        mixed.verdict = entry(&Receipt { sequence: 1, ..receipt() }, None).verdict;
        assert_eq!(mixed.verify(), Err(Worthless::Verdict));
    }

    #[test]
    fn a_receipt_that_contradicts_itself_is_worth_nothing() {
        let of = |change: fn(&mut Receipt)| {
            let mut receipt = receipt();
            change(&mut receipt);
            read_receipt(&codec::encode(&receipt)).map(drop)
        };
        assert_eq!(of(|_| {}), Ok(()));
        assert_eq!(of(|r| r.amount = Money(501)), Err(Worthless::Sum));
        assert_eq!(of(|r| r.waived = Money(u64::MAX)), Err(Worthless::Absurd));
        assert_eq!(of(|r| r.attempts[1] = r.attempts[0]), Err(Worthless::Attempts));
        assert_eq!(of(|r| r.used.done = u32::MAX), Err(Worthless::Attempts));
        assert_eq!(of(|r| r.borrower = r.lender), Err(Worthless::Malformed));
        let absurd = |r: &mut Receipt| {
            r.used.core = Millis(u64::MAX);
            r.amount = r.price.of(&r.used).less(r.waived);
        };
        assert_eq!(of(absurd), Err(Worthless::Absurd));
    }

    #[test]
    fn a_dispute_counts_at_what_both_sides_grant() {
        let own = Contested::new(Used::default(), Money(400), "x".repeat(999));
        let (read, verdict) = entry(&receipt(), Some(own)).verify().unwrap();
        assert_eq!(read.owed(&verdict.unwrap()), Money(400));
        let more = Contested::new(Used::default(), Money(501), String::new());
        assert_eq!(entry(&receipt(), Some(more)).verify(), Err(Worthless::Verdict));
    }
}
