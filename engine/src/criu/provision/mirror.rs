//! Where the host gets its packages from.

use std::path::Path;

/// Where Debian's packages are when the host does not say.
const FALLBACK: &str = "http://deb.debian.org/debian";
/// The most bytes of a file that are looked at.
const MAX_FILE: u64 = 1 << 20;

/// The Debian archive that the host uses; Debian's own when it names none.
pub fn of_host(etc_apt: &Path) -> String {
    let mut files = vec![etc_apt.join("sources.list")];
    if let Ok(entries) = std::fs::read_dir(etc_apt.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    for file in files {
        let Some(text) = read(&file) else { continue };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line_style(&text),
            Some("sources") => deb822_style(&text),
            _ => None,
        };
        if let Some(uri) = found {
            return uri;
        }
    }
    FALLBACK.to_owned()
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// `deb [options] URI suite component…`
fn one_line_style(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        rest.split_whitespace().next().filter(|uri| is_debian(uri)).map(str::to_owned)
    })
}

/// Stanzas of `Types:`, `URIs:`, …
fn deb822_style(text: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        if field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"))
            || !field("Types").is_some_and(|types| types.split_whitespace().any(|kind| kind == "deb"))
        {
            return None;
        }
        field("URIs")?.split_whitespace().find(|uri| is_debian(uri)).map(str::to_owned)
    })
}

/// Debian's main archive, by the path that every mirror has; written into a file
/// of ours, so nothing but an address may be in it.
fn is_debian(uri: &str) -> bool {
    let plain = uri.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'[' && byte != b']');
    let schemes = ["http://", "https://"];
    plain
        && schemes.iter().any(|scheme| uri.starts_with(scheme))
        && uri.trim_end_matches('/').ends_with("/debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_style() {
        let text = "# deb http://commented/debian x\n\
                    deb http://security.debian.org/debian-security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k] https://mirror.example/debian/ bookworm main\n";
        assert_eq!(one_line_style(text).as_deref(), Some("https://mirror.example/debian/"));
    }

    #[test]
    fn the_new_style() {
        let text = "Types: deb\nURIs: https://deb.nodesource.com/node_20.x\nSuites: nodistro\n\n\
                    Types: deb\n# x\nURIs: http://deb.debian.org/debian\nSuites: bookworm\n";
        assert_eq!(deb822_style(text).as_deref(), Some("http://deb.debian.org/debian"));
        assert_eq!(deb822_style("Enabled: no\nTypes: deb\nURIs: http://x/debian"), None);
    }

    #[test]
    fn a_host_without_sources_gets_debians_own() {
        assert_eq!(of_host(Path::new("/nonexistent")), FALLBACK);
    }
}
