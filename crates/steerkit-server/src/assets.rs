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

/// What the page loads.
pub(crate) const ASSETS: &[Asset] = &[];

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
