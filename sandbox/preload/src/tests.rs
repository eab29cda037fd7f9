//! Properties of the decisions, on tables built as the launcher builds them.

mod here;
mod windows;

use crate::format;

/// The hash of a path below another, as the launcher makes it.
fn hash(above: u64, path: &[u8]) -> u64 {
    path.split(|b| *b == b'/').fold(above, format::hash_part)
}

/// What goes into a table.
#[derive(Debug, Clone, Default)]
struct Content {
    /// Source, target, whether it is a path of this system, names of the index.
    rules: Vec<(String, String, bool, Vec<String>)>,
    watched: Vec<String>,
    flags: u32,
    records: String,
}

impl Content {
    fn windows(rules: &[(&str, &str, &[&str])]) -> Self {
        let own = |text: &&str| (*text).to_owned();
        let rules = rules.iter().map(|(source, at, names)| {
            (own(source), own(at), false, names.iter().map(own).collect())
        });
        Self { rules: rules.collect(), ..Self::default() }
    }

    fn here(rules: &[(&str, &str)]) -> Self {
        let rules =
            rules.iter().map(|(source, at)| ((*source).into(), (*at).into(), true, Vec::new()));
        Self { rules: rules.collect(), ..Self::default() }
    }

    fn bytes(&self) -> Vec<u8> {
        let short = |n: usize| u32::try_from(n).unwrap();
        let (mut text, mut rules, mut entries, mut watched) = (vec![], vec![], vec![], vec![]);
        let mut put = |piece: &str| {
            let at = short(text.len());
            text.extend_from_slice(piece.as_bytes());
            [at, short(piece.len())]
        };
        for (source, at, posix, names) in &self.rules {
            let source_hash = hash(format::SEED, source.as_bytes());
            let mut sorted: Vec<_> =
                names.iter().map(|n| (hash(source_hash, n.as_bytes()), n)).collect();
            sorted.sort();
            let mut count = short(names.len());
            count |= if names.is_empty() { 0 } else { format::INSENSITIVE };
            count |= if *posix { format::POSIX } else { 0 };
            let first = short(entries.len() / format::ENTRY);
            let fields = [put(source).to_vec(), put(at).to_vec(), vec![first, count]].concat();
            rules.push((source_hash, fields));
            for (hash, name) in sorted {
                entries.extend_from_slice(&hash.to_le_bytes());
                put(name).iter().for_each(|n| entries.extend_from_slice(&n.to_le_bytes()));
            }
        }
        for folder in &self.watched {
            put(folder).iter().for_each(|n| watched.extend_from_slice(&n.to_le_bytes()));
        }
        let records = put(&self.records);
        rules.sort();
        let n_rules = rules.len();
        let rules = rules.into_iter().flat_map(|(hash, fields)| {
            let fields = fields.into_iter().flat_map(u32::to_le_bytes);
            hash.to_le_bytes().into_iter().chain(fields).collect::<Vec<_>>()
        });
        let rules: Vec<u8> = rules.collect();
        let start = format::HEAD + rules.len() + entries.len() + watched.len();
        let head = [
            short(n_rules),
            short(entries.len() / format::ENTRY),
            short(self.watched.len()),
            short(start),
            short(text.len()),
            self.flags,
            records[0],
            records[1],
        ];
        let mut all = format::MAGIC.to_vec();
        head.iter().for_each(|n| all.extend_from_slice(&n.to_le_bytes()));
        all.resize(format::HEAD, 0);
        [all, rules, entries, watched, text].concat()
    }
}
