//! Windows paths: the grammar, the index, and what no path and no table may bring about.

use proptest::prelude::*;

use super::Content;
use crate::{
    redirect::{Decision, ENAMETOOLONG, ENOENT, LOADED, PATH_MAX, Verdict, redirect},
    rules::Table,
};

fn show() -> Vec<u8> {
    Content::windows(&[
        ("C:/show", "/home/a/show", &[]),
        ("c:/Show/tex", "/mnt/tex", &["Wood.PNG", "Été", "Été/Blé.exr", "twin", "TWIN"]),
        ("//nas/share", "/mnt/nas", &[]),
    ])
    .bytes()
}

fn verdict(bytes: &[u8], path: &[u8], out: &mut [u8; PATH_MAX]) -> Verdict {
    redirect(&Table::new(bytes).unwrap(), path, out)
}

fn map(bytes: &[u8], path: &str) -> Result<String, Decision> {
    let mut out = [0; PATH_MAX];
    match verdict(bytes, path.as_bytes(), &mut out).decision {
        Decision::Redirect(n) => {
            assert_eq!(out[n], 0);
            Ok(String::from_utf8_lossy(&out[..n]).into_owned())
        }
        other => Err(other),
    }
}

#[test]
fn drives_and_servers_are_found_with_any_separators_and_case() {
    let table = show();
    for path in [
        r"C:\show\a.pov",
        r"c:/show/a.pov",
        r"C:\\show\\a.pov",
        r"C:\/SHOW\.\x\..\a.pov",
        r"\\?\C:\show\a.pov",
        r"\\\\?\\C:\\show\\a.pov",
        r"/usr/share/povray-3.7/C:\\show\\a.pov",
        r"inc/C:/show/a.pov. ",
        r"C:\show. \a.pov",
    ] {
        assert_eq!(map(&table, path), Ok("/home/a/show/a.pov".into()), "{path}");
    }
    for path in [
        r"\\nas\share\b",
        r"\\NAS/share\\b",
        r"\\?\UNC\nas\share\b",
        r"\\?\unc\nas\share\b",
        r"\\nas\share\..\b",
        r"\\\\nas\\share\\b",
        r"/usr/include/\\nas\share\b",
    ] {
        assert_eq!(map(&table, path), Ok("/mnt/nas/b".into()), "{path}");
    }
    assert_eq!(map(&table, r"C:\show"), Ok("/home/a/show".into()));
    assert_eq!(map(&table, r"C:\show\"), Ok("/home/a/show/".into()));
    assert_eq!(map(&table, r"C:\show\dir\"), Ok("/home/a/show/dir/".into()));
}

#[test]
fn the_longest_rule_wins_and_the_index_knows_the_true_names() {
    let table = show();
    for (path, result) in [
        (r"C:\Show\Tex\wood.png", "/mnt/tex/Wood.PNG"),
        (r"C:\show\tex\éTÉ\bLÉ.EXR", "/mnt/tex/Été/Blé.exr"),
        ("C:\\show\\tex\\e\u{301}te\u{301}\\ble\u{301}.exr", "/mnt/tex/Été/Blé.exr"),
        (r"C:\show\tex\ÉTÉ\New.exr", "/mnt/tex/Été/New.exr"),
        (r"C:\show\tex\..\a", "/home/a/show/a"),
        (r"C:\show\texture", "/home/a/show/texture"),
        (r"C:\show\tex\twin", "/mnt/tex/twin"),
        (r"C:\show\tex\TWIN", "/mnt/tex/TWIN"),
        (r"C:\show\tex\Twin", "/mnt/tex/TWIN"),
        (r"C:\show\tex\Wood.PNG\", "/mnt/tex/Wood.PNG/"),
        (r"C:\SHOW\TEX\Other\Sub\", "/mnt/tex/Other/Sub/"),
    ] {
        assert_eq!(map(&table, path), Ok(result.into()), "{path}");
    }
}

#[test]
fn what_is_no_path_of_ours_passes() {
    let table = show();
    for path in [
        "/home/x",
        "",
        "rel",
        "D:show",
        "ab:c",
        r"a\b",
        r"C:\shows\x",
        r"D:\show",
        "https://x/y",
        r"\show\x",
        "/srv//nas/share",
        "//nas/share/x",
        r"\\\nas\share\x",
        r"\\\\\nas\share\x",
        r"\/nas\share",
        r"/x/\\.\y",
        r"/x/C:\..\other",
        r"C:\",
    ] {
        assert_eq!(map(&table, path), Err(Decision::Pass), "{path}");
    }
}

#[test]
fn what_cannot_exist_is_refused() {
    let table = show();
    for path in [
        r"\\.\PhysicalDrive0",
        r"C:\show\con",
        r"C:\show\nul.txt",
        r"C:\show\Com1.log",
        r"C:\show\LPT¹",
        r"C:\show\aux .x",
        r"C:\show\CONOUT$",
        r"C:\show\a:stream",
        r"C:\show\a.png::$DATA",
        r"\\?\GLOBALROOT\x",
        r"C:\show\...\x",
        r"C:\show\..\other",
        r"C:show",
        "c:",
        r"C:\..\other",
    ] {
        assert_eq!(map(&table, path), Err(Decision::Refuse(ENOENT)), "{path}");
    }
    for path in [r"C:\show\console", r"C:\show\com0", r"C:\show\com10", r"C:\show\nul1\x"] {
        assert!(map(&table, path).is_ok(), "{path}");
    }
}

#[test]
fn the_part_that_the_artist_wrote_is_told() {
    let table = show();
    let mut out = [0; PATH_MAX];
    let mut at = |path: &str| verdict(&table, path.as_bytes(), &mut out).spelled_at;
    assert_eq!(at(r"C:\show\a"), Some(0));
    assert_eq!(at(r"/usr/inc/D:\a"), Some(9));
    assert_eq!(at(r"C:a"), Some(0));
    assert_eq!(at("/plain"), None);
    assert_eq!(at(r"a\b:c"), None);
}

#[test]
fn only_the_library_understands_the_sign_that_it_is_loaded() {
    let sign = std::str::from_utf8(LOADED).unwrap();
    assert_eq!(map(&Content::default().bytes(), sign), Ok("/dev/null".into()));
}

#[test]
fn a_path_that_grows_too_long_is_refused() {
    let long = "/".to_owned() + &"t".repeat(3000);
    let table = Content::windows(&[("c:", &long, &[])]).bytes();
    let path = format!(r"C:\{}", "x".repeat(2000));
    assert_eq!(map(&table, &path), Err(Decision::Refuse(ENAMETOOLONG)));
    let mut short = [0; 64];
    let table = show();
    let path = format!(r"C:\show\{}", "x".repeat(80)).into_bytes();
    let said = redirect(&Table::new(&table).unwrap(), &path, &mut short);
    assert_eq!(said.decision, Decision::Refuse(ENAMETOOLONG));
}

fn path_like() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        r"C:\show",
        r"\tex",
        "/",
        r"\",
        r"\\nas\share",
        "..",
        ".",
        "Wood.png",
        r"\\?\",
        "UNC",
        ":",
        " ",
        "con",
        "é",
        "/usr/",
        "x",
        "C:",
    ];
    let piece = prop_oneof![
        4 => proptest::sample::select(pieces.to_vec()).prop_map(|p| p.as_bytes().to_vec()),
        1 => proptest::collection::vec(1_u8..=255, 0..6),
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// P1, P2 and P3.
    #[test]
    fn results_lie_below_their_targets_and_are_mapped_only_once(path in path_like()) {
        let bytes = show();
        let mut out = [0; PATH_MAX];
        let before = path.clone();
        if let Decision::Redirect(n) = verdict(&bytes, &path, &mut out).decision {
            let result = &out[..n];
            if path != LOADED {
                let below = [b"/home/a/show".as_slice(), b"/mnt/tex", b"/mnt/nas"].iter().any(|t| {
                    result.starts_with(t) && matches!(result.get(t.len()), None | Some(b'/'))
                });
                prop_assert!(below);
            }
            prop_assert!(!result.split(|b| *b == b'/').any(|part| part == b".."));
            let mut again = [0; PATH_MAX];
            prop_assert_eq!(verdict(&bytes, result, &mut again).decision, Decision::Pass);
        }
        prop_assert_eq!(path, before);
    }

    /// P4: a rule ends where a part ends.
    #[test]
    fn a_longer_name_is_another_name(more in "[a-zA-Z0-9_-]{1,8}") {
        let table = Content::windows(&[("c:/show", "/home/a/show", &[])]).bytes();
        prop_assert_eq!(map(&table, &format!(r"C:\show{more}\x")), Err(Decision::Pass));
        let result = format!("/home/a/show/{more}");
        prop_assert_eq!(map(&table, &format!(r"C:\show\{more}")), Ok(result));
    }

    /// P5: the order of rules makes no difference.
    #[test]
    fn the_longest_rule_wins_in_any_order(
        rules in proptest::collection::vec("[ab](/[ab]){0,3}", 1..8),
        path in "[abAB](/[abAB]){0,5}",
        seed in any::<u64>(),
    ) {
        let mut rules: Vec<String> = rules.iter().map(|r| format!("c:/{r}")).collect();
        rules.sort();
        rules.dedup();
        let table = |rules: &[String]| {
            let rules = rules.iter().map(|r| (r.clone(), format!("/t{}", r.replace(['/', ':'], "_")), false, vec![]));
            Content { rules: rules.collect(), ..Content::default() }.bytes()
        };
        let one = table(&rules);
        let n = rules.len();
        rules.rotate_left(usize::try_from(seed % 8).unwrap() % n);
        if seed & 8 == 0 {
            rules.reverse();
        }
        let path = format!("C:/{path}");
        let expected = rules
            .iter()
            .filter(|r| path.to_lowercase() == **r || path.to_lowercase().starts_with(&format!("{r}/")))
            .max_by_key(|r| r.len())
            .map(|r| format!("/t{}{}", r.replace(['/', ':'], "_"), &path[r.len()..]));
        let found = map(&one, &path).ok();
        prop_assert_eq!(&found, &map(&table(&rules), &path).ok());
        prop_assert_eq!(found, expected);
    }

    /// P7.
    #[test]
    fn no_bytes_make_it_panic(path in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let bytes = show();
        let mut out = [0; PATH_MAX];
        verdict(&bytes, &path, &mut out);
        let rooted = [br"C:\show\".as_slice(), &path].concat();
        let said = verdict(&bytes, &rooted, &mut out);
        if rooted.len() >= PATH_MAX {
            prop_assert_eq!(said.decision, Decision::Pass);
        }
        let mut short = [0; 100];
        redirect(&Table::new(&bytes).unwrap(), &rooted, &mut short);
    }

    #[test]
    fn a_spoiled_table_does_no_harm(cut in 0_usize..800, at in 0_usize..800, value in any::<u8>()) {
        let mut bytes = show();
        bytes.truncate(cut.max(1));
        let n = bytes.len();
        bytes[at % n] = value;
        let mut out = [0; PATH_MAX];
        if let Some(table) = Table::new(&bytes) {
            redirect(&table, br"C:\show\tex\wood.png", &mut out);
            table.watches(b"/home/a");
        }
    }
}
