//! Why a job has failed: of the reasons that its tasks give, the one that most of them share.

use std::collections::BTreeMap;

/// A longer reason is cut, in characters: the task's own page has all of it.
const LONGEST: usize = 300;

/// The reason that most share, and by how many. Reasons that differ in numbers only, such as frame numbers, are one; the
/// first of them stands for all.
pub(crate) fn most_common<'a>(reasons: impl Iterator<Item = &'a str>) -> Option<(String, usize)> {
    let mut groups: BTreeMap<String, (usize, usize, &str)> = BTreeMap::new();
    for (n, reason) in reasons.enumerate() {
        groups.entry(shape(reason)).or_insert((0, n, reason)).0 += 1;
    }
    let most = groups.into_values().max_by_key(|(count, first, _)| (*count, usize::MAX - first));
    most.map(|(count, _, reason)| (reason.trim().chars().take(LONGEST).collect(), count))
}

/// The reason with every run of digits replaced.
fn shape(reason: &str) -> String {
    let mut shape = String::new();
    for c in reason.chars().take(LONGEST) {
        if !c.is_ascii_digit() {
            shape.push(c);
        } else if !shape.ends_with('#') {
            shape.push('#');
        }
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_that_differ_in_numbers_are_one_and_the_first_of_equals_wins() {
        let reasons = [
            "exit code 1",
            "frame 12: no texture a.png",
            "frame 13: no texture a.png",
            "frame 140: no texture a.png",
            "exit code 137",
        ];
        let most = most_common(reasons.into_iter());
        assert_eq!(most, Some(("frame 12: no texture a.png".to_owned(), 3)));
        assert_eq!(most_common(["b", "a"].into_iter()), Some(("b".to_owned(), 1)));
        assert_eq!(most_common(std::iter::empty()), None);
        assert_eq!(most_common(["x".repeat(5000).as_str()].into_iter()).unwrap().0.len(), LONGEST);
    }
}
