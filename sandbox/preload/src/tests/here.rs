//! Paths of this system on a host without mounts: a small tree in memory stands for the host.

use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;

use super::Content;
use crate::{
    format::REVERSE,
    posix::{Host, resolve, reverse},
    redirect::{Decision, PATH_MAX},
    rules::Table,
};

/// Links of the host by path, its folders, and every path that it was asked about.
#[derive(Default)]
struct Tree {
    links: BTreeMap<String, String>,
    folders: Vec<String>,
    asked: RefCell<Vec<String>>,
}

impl Tree {
    fn name(&self, path: &[u8]) -> String {
        let path = path.strip_suffix(b"\0").expect("ends with NUL");
        let name = String::from_utf8(path.to_vec()).unwrap();
        self.asked.borrow_mut().push(name.clone());
        name
    }
}

impl Host for Tree {
    fn link(&self, path: &[u8], out: &mut [u8]) -> Result<usize, i32> {
        let target = self.links.get(&self.name(path)).ok_or(22)?;
        out[..target.len()].copy_from_slice(target.as_bytes());
        Ok(target.len())
    }

    fn enter(&self, path: &[u8]) -> Result<(), i32> {
        if self.folders.contains(&self.name(path)) { Ok(()) } else { Err(20) }
    }
}

fn tree() -> Tree {
    let links = [
        ("/srv/in/up", ".."),
        ("/srv/in/home", "/home/art/show/tex"),
        ("/srv/in/tex/back", "../../show/a"),
        ("/srv/in/away", "/etc"),
        ("/srv/in/loop", "loop"),
    ];
    let links = links.map(|(link, target)| (link.to_owned(), target.to_owned())).into();
    let folders = ["/srv/in", "/srv/in/tex", "/srv/out", "/etc", "/"].map(str::to_owned).into();
    Tree { links, folders, asked: RefCell::default() }
}

fn map(path: &str, follow: bool) -> Result<String, Decision> {
    let rules = [("/home/art/show", "/srv/in"), ("/home/art/show/out", "/srv/out")];
    let bytes = Content::here(&rules).bytes();
    let mut out = [0; PATH_MAX];
    match resolve(&Table::new(&bytes).unwrap(), path.as_bytes(), follow, &tree(), &mut out) {
        Decision::Redirect(n) => {
            assert_eq!(out[n], 0);
            Ok(String::from_utf8(out[..n].to_vec()).unwrap())
        }
        other => Err(other),
    }
}

#[test]
fn an_artists_path_is_found_at_its_longest_rule() {
    for (path, result) in [
        ("/home/art/show/a.pov", "/srv/in/a.pov"),
        ("//home/./art//show/a.pov", "/srv/in/a.pov"),
        ("/home/art/show/out/f.png", "/srv/out/f.png"),
        ("/home/art/show/outer", "/srv/in/outer"),
        ("/home/art/show", "/srv/in"),
        ("/home/art/show/", "/srv/in/"),
        ("/home/art/show/tex/.", "/srv/in/tex/."),
    ] {
        assert_eq!(map(path, true), Ok(result.into()), "{path}");
    }
    for path in
        ["/home/art/shows", "/home/art", "/", "", "home/art/show/a", "show/../x", "/etc/passwd"]
    {
        assert_eq!(map(path, true), Err(Decision::Pass), "{path}");
    }
}

#[test]
fn links_and_climbing_mean_what_they_mean_where_the_artist_has_them() {
    for (path, result) in [
        ("/home/art/show/tex/../a", "/srv/in/a"),
        ("/home/art/show/../show/a", "/srv/in/a"),
        ("/home/art/show/../x", "/home/art/x"),
        ("/home/art/show/out/../a", "/srv/in/a"),
        ("/home/art/show/up/show/a", "/srv/in/a"),
        ("/home/art/show/up/other", "/home/art/other"),
        ("/home/art/show/home/wood", "/srv/in/tex/wood"),
        ("/home/art/show/home/../a", "/srv/in/a"),
        ("/home/art/show/tex/back", "/srv/in/a"),
        ("/home/art/show/away/passwd", "/etc/passwd"),
        ("/home/art/other/../show/a", "/srv/in/a"),
    ] {
        let said = map(path, true);
        if path.contains("/other/..") {
            assert_eq!(said, Err(Decision::Pass), "{path}");
        } else {
            assert_eq!(said, Ok(result.into()), "{path}");
        }
    }
    assert_eq!(map("/home/art/show/home", false), Ok("/srv/in/home".into()));
    assert_eq!(map("/home/art/show/home/", false), Ok("/srv/in/tex/".into()));
    assert_eq!(map("/home/art/show/loop", true), Err(Decision::Refuse(40)));
    assert_eq!(map("/home/art/show/a.pov/../x", true), Err(Decision::Refuse(20)));
}

#[test]
fn what_the_host_says_is_told_in_the_artists_names() {
    let rules = [("/home/art/show", "/srv/in"), ("/home/art/tex", "/srv/in/tex")];
    let bytes = Content::here(&rules).bytes();
    let table = Table::new(&bytes).unwrap();
    let back = |path: &str| {
        let mut out = [0; PATH_MAX];
        let n = reverse(&table, path.as_bytes(), &mut out)?;
        Some(String::from_utf8(out[..n].to_vec()).unwrap())
    };
    assert_eq!(back("/srv/in/a"), Some("/home/art/show/a".into()));
    assert_eq!(back("/srv/in"), Some("/home/art/show".into()));
    assert_eq!(back("/srv/in/tex/b"), Some("/home/art/tex/b".into()));
    assert_eq!(back("/srv/inner"), None);
    assert_eq!(back("pipe:[3]"), None);
}

#[test]
fn a_table_says_what_is_watched_and_where_notes_go() {
    let content = Content {
        watched: vec!["/home/art".into(), "/mnt".into()],
        flags: REVERSE,
        records: "/session/notes\0".into(),
        ..Content::default()
    };
    let bytes = content.bytes();
    let table = Table::new(&bytes).unwrap();
    assert_eq!((table.flags, table.records), (REVERSE, b"/session/notes\0".as_slice()));
    for path in ["/home/art", "/home/art/a", "/mnt/r1/b"] {
        assert!(table.watches(path.as_bytes()), "{path}");
    }
    for path in ["/home/artist", "/home", "mnt/a", ""] {
        assert!(!table.watches(path.as_bytes()), "{path}");
    }
    for records in ["/session/notes", "/a\0b\0"] {
        let bytes = Content { records: records.into(), ..content.clone() }.bytes();
        assert!(Table::new(&bytes).is_none(), "{records:?}");
    }
}

proptest! {
    /// Nothing outside of the targets is asked for or reached, but what the artist's own names say.
    #[test]
    fn no_climbing_reaches_the_hosts_folders_around_a_target(
        path in "/home/art/show(/(\\.\\.|\\.|tex|up|home|back|out|a|)){0,9}", follow in any::<bool>()
    ) {
        let bytes = Content::here(&[("/home/art/show", "/srv/in"), ("/home/art/show/out", "/srv/out")]).bytes();
        let host = tree();
        let mut out = [0; PATH_MAX];
        let said = resolve(&Table::new(&bytes).unwrap(), path.as_bytes(), follow, &host, &mut out);
        let mut reached = host.asked.take();
        if let Decision::Redirect(n) = said {
            reached.push(String::from_utf8(out[..n].to_vec()).unwrap());
        }
        for place in reached {
            let fine = !place.starts_with("/srv")
                || ["/srv/in", "/srv/out"].iter().any(|t| place == *t || place.starts_with(&format!("{t}/")));
            prop_assert!(fine, "{} reaches {}", path, place);
            prop_assert!(!place.split('/').any(|part| part == ".."));
        }
    }

    /// P7.
    #[test]
    fn no_bytes_make_it_panic(path in proptest::collection::vec(1_u8..=255, 0..5000)) {
        struct Nothing;
        impl Host for Nothing {
            fn link(&self, _: &[u8], _: &mut [u8]) -> Result<usize, i32> {
                Err(22)
            }
            fn enter(&self, _: &[u8]) -> Result<(), i32> {
                Ok(())
            }
        }
        let bytes = Content::here(&[("/a", "/srv/in")]).bytes();
        let mut out = [0; PATH_MAX];
        for path in [path.clone(), [b"/a/".as_slice(), &path].concat()] {
            resolve(&Table::new(&bytes).unwrap(), &path, true, &Nothing, &mut out);
        }
    }
}
