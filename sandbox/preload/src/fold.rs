//! Folds names so that two spellings of one name compare equal: without case, and composed or decomposed.
//!
//! Each name is decomposed canonically, its marks are ordered, and each character is case-folded by Unicode's
//! simple folding. Two names fold equally when their NFC forms differ only in simple case. Needs no memory
//! but a few marks at a time, so that the library can do it within any program.

use super::marks::{CLASSES, PARTS};

/// Most characters between two letters whose order is put right; longer runs do not occur in names.
const MOST_MARKS: usize = 24;
/// Above every character, so that a byte that is no UTF-8 is mistaken for none.
const BYTES: u32 = 0x11_0000;

/// The folded characters of a name; bytes that are no UTF-8 stand for themselves.
pub(crate) fn folded(name: &[u8]) -> Folded<'_> {
    Folded { left: name, waiting: [0; MOST_MARKS], next: 0, end: 0 }
}

/// Iterator over the folded characters of a name.
#[derive(Debug, Clone)]
pub(crate) struct Folded<'a> {
    left: &'a [u8],
    waiting: [u32; MOST_MARKS],
    next: usize,
    end: usize,
}

impl Iterator for Folded<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        if self.next == self.end {
            let first = *self.left.first()?;
            if first.is_ascii() {
                self.left = &self.left[1..];
                return Some(u32::from(first.to_ascii_lowercase()));
            }
            self.gather();
        }
        let letter = self.waiting[self.next];
        self.next += 1;
        Some(fold(letter))
    }
}

impl Folded<'_> {
    /// Take one character that is not ASCII and all marks that follow it.
    #[cold]
    fn gather(&mut self) {
        (self.next, self.end) = (0, 0);
        let mut left = self.left;
        while let Some((letter, length)) = first_of(left) {
            let mut parts = [0; 4];
            let n = decompose(letter, &mut parts);
            let starts = class(parts[0]) == 0;
            if self.end > 0 && (starts || self.end + n > MOST_MARKS) {
                break;
            }
            self.waiting[self.end..self.end + n].copy_from_slice(&parts[..n]);
            self.end += n;
            left = &left[length..];
        }
        self.left = left;
        order(&mut self.waiting[..self.end]);
    }
}

/// The first character of a text and its length in bytes.
fn first_of(text: &[u8]) -> Option<(u32, usize)> {
    let first = *text.first()?;
    let length = match first {
        0..=0x7f => return Some((u32::from(first), 1)),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let valid = text.get(..length).and_then(|bytes| core::str::from_utf8(bytes).ok());
    let letter =
        valid.and_then(|text| text.chars().next()).map(|letter| (u32::from(letter), length));
    Some(letter.unwrap_or_else(|| (BYTES + u32::from(first), 1)))
}

/// Write what a character is made of, and say how many that are: one to four.
fn decompose(letter: u32, parts: &mut [u32; 4]) -> usize {
    if let Some(n) = hangul(letter, parts) {
        return n;
    }
    // The first part may have parts itself; the second never has.
    let mut letter = letter;
    let mut n = parts.len();
    while n > 1 {
        let Ok(key) = u16::try_from(letter) else { break };
        let Ok(found) = PARTS.binary_search_by_key(&key, |entry| entry.0) else { break };
        let (_, base, mark) = PARTS[found];
        letter = u32::from(base);
        if mark != 0 {
            n -= 1;
            parts[n] = u32::from(mark);
        }
    }
    n -= 1;
    parts[n] = letter;
    parts.copy_within(n.., 0);
    parts.len() - n
}

/// Korean syllables are numbered by the letters that they are made of.
fn hangul(letter: u32, parts: &mut [u32; 4]) -> Option<usize> {
    let n = letter.checked_sub(0xac00).filter(|n| *n < 11_172)?;
    parts[0] = 0x1100 + n / 588;
    parts[1] = 0x1161 + n % 588 / 28;
    parts[2] = 0x11a7 + n % 28;
    Some(if n.is_multiple_of(28) { 2 } else { 3 })
}

/// The class by which a mark is ordered; zero for letters.
fn class(letter: u32) -> u8 {
    let Ok(key) = u16::try_from(letter) else { return 0 };
    let after = CLASSES.partition_point(|entry| entry.0 <= key);
    let run = after.checked_sub(1).map(|n| CLASSES[n]);
    run.filter(|run| key <= run.1).map_or(0, |run| run.2)
}

/// Put each run of marks in order of their classes; marks of one class keep their order.
fn order(letters: &mut [u32]) {
    for end in 1..letters.len() {
        let own = class(letters[end]);
        let mut at = end;
        while own != 0 && at > 0 && class(letters[at - 1]) > own {
            letters.swap(at - 1, at);
            at -= 1;
        }
    }
}

/// Unicode's simple case folding: lower case, but for the few letters that have two of them.
fn fold(letter: u32) -> u32 {
    if letter < 0x80 {
        return u32::from(u8::try_from(letter).unwrap_or(0).to_ascii_lowercase());
    }
    match letter {
        0xb5 => 0x3bc,
        0x17f => 0x73,
        0x345 | 0x1fbe => 0x3b9,
        0x3c2 => 0x3c3,
        0x3d0 => 0x3b2,
        0x3d1 => 0x3b8,
        0x3d5 => 0x3c6,
        0x3d6 => 0x3c0,
        0x3f0 => 0x3ba,
        0x3f1 => 0x3c1,
        0x3f5 => 0x3b5,
        0x1c80 => 0x432,
        0x1c81 => 0x434,
        0x1c82 => 0x43e,
        0x1c83 => 0x441,
        0x1c84 | 0x1c85 => 0x442,
        0x1c86 => 0x44a,
        0x1c87 => 0x463,
        0x1c88 => 0xa64b,
        // Cherokee folds to capitals in Unicode's table; here to small letters, which tells the same names apart.
        _ => char::from_u32(letter).map_or(letter, |letter| {
            let mut lower = letter.to_lowercase();
            match (lower.next(), lower.next()) {
                (Some(one), None) => u32::from(one),
                _ => u32::from(letter),
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        folded(one.as_bytes()).eq(folded(other.as_bytes()))
    }

    #[test]
    fn spellings_of_one_name_fold_equally() {
        for (one, other) in [
            ("Wood.PNG", "wood.png"),
            ("ÉTÉ", "e\u{301}te\u{301}"),
            ("Ệ", "e\u{302}\u{323}"),
            ("ệ", "E\u{323}\u{302}"),
            ("a\u{300}\u{316}", "a\u{316}\u{300}"),
            ("ΣΊΣΥΦΟΣ", "σίσυφος"),
            ("ЙОГА", "и\u{306}ога"),
            ("がぎ", "か\u{3099}き\u{3099}"),
            ("한글", "\u{1112}\u{1161}\u{11ab}\u{1100}\u{1173}\u{11af}"),
            ("\u{212b}\u{2126}\u{212a}", "åωk"),
            ("STRAẞE", "straße"),
            ("𐐀", "𐐨"),
            ("ꭰ", "Ꭰ"),
        ] {
            assert!(same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn different_names_stay_different() {
        for (one, other) in [
            ("a", "b"),
            ("e", "é"),
            ("ss", "ß"),
            ("i", "ı"),
            ("か", "が"),
            ("a\u{301}\u{300}", "a\u{300}\u{301}"),
            ("fi", "ﬁ"),
            ("", "a"),
        ] {
            assert!(!same(one, other), "{one} {other}");
        }
        assert!(!folded(b"\xff").eq(folded(b"\xfe")));
        assert!(!folded(b"\xc3").eq(folded("Ã".as_bytes())));
        assert!(folded(b"a\xc3\xa9\xffB").eq(folded(b"Ae\xcc\x81\xffb")));
    }

    #[test]
    fn a_pile_of_marks_is_taken_in_portions() {
        let pile = "e".to_owned() + &"\u{301}".repeat(500);
        assert_eq!(folded(pile.as_bytes()).count(), 501);
    }
}
