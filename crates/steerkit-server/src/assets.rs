//! The playground's files, which are part of the binary.

/// A file of the page.
pub(crate) struct Asset {
    /// Its name below `/assets/`.
    pub(crate) name: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) text: &'static str,
}

/// The page itself.
pub(crate) const INDEX: &str = include_str!("../web/index.html");

macro_rules! scripts {
    ($($name:literal),* $(,)?) => {
        &[
            Asset { name: "style.css", content_type: "text/css; charset=utf-8", text: include_str!("../web/style.css") },
            $(Asset {
                name: $name,
                content_type: "text/javascript; charset=utf-8",
                text: include_str!(concat!("../web/", $name)),
            }),*
        ]
    };
}

/// What the page loads.
pub(crate) const ASSETS: &[Asset] = scripts![
    "api.js",
    "chat.js",
    "compare.js",
    "dialogs.js",
    "dom.js",
    "export.js",
    "main.js",
    "profiles.js",
    "reply.js",
    "runs.js",
    "settings.js",
    "share.js",
    "sliders.js",
    "starters.js",
    "state.js",
    "text.js",
    "tokens.js",
];

/// The API's documentation, which reads `/openapi.json`.
pub(crate) const DOCS: &str = include_str!("../web/docs.html");

/// What `/docs` loads.
pub(crate) const DOCS_SCRIPT: Asset = Asset {
    name: "docs.js",
    content_type: "text/javascript; charset=utf-8",
    text: include_str!("../web/docs.js"),
};

/// Nothing from elsewhere, no inline script, no frame around the page.
pub(crate) const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_and_they_are_small() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/web");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .expect("the page's folder is there")
            .map(|entry| entry.expect("it can be read").file_name().into_string().expect("plain names"))
            .collect();
        files.sort();
        let mut served: Vec<&str> = ASSETS.iter().map(|asset| asset.name).collect();
        served.extend([DOCS_SCRIPT.name, "docs.html", "index.html"]);
        served.sort_unstable();
        assert_eq!(files, served);
        let bytes = INDEX.len() + ASSETS.iter().map(|asset| asset.text.len()).sum::<usize>();
        assert!(bytes < 300 * 1024, "{bytes} bytes");
    }
}
