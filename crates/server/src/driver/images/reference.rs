//! References of container images, in one spelling.

use std::fmt;
use std::str::FromStr;

/// What an image is called: `web:1` is `docker.io/library/web:1`, as it is for docker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host of the registry, and its port if it has one.
    pub registry: String,
    /// Path in the registry.
    pub repository: String,
    /// Name of a version; it may mean another image later.
    pub tag: Option<String>,
    /// `sha256:…`: this image and no other.
    pub digest: Option<String>,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{text}` is no reference of an image: {why}");
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) if is_digest(digest) => (rest, Some(digest.to_owned())),
            Some(_) => return Err(wrong("after `@` there should be `sha256:` and 64 hex digits")),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
            _ => (rest, None),
        };
        let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
        let (registry, repository) = match path.split_once('/') {
            Some((host, repository)) if is_host(host) => (host, repository.to_owned()),
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let host_ok = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
        let path_ok =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(&byte);
        let tag_ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !registry.bytes().all(host_ok) || registry.starts_with(['.', '-', ':']) {
            return Err(wrong("its registry is no host"));
        }
        let parts_ok =
            repository.split('/').all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()));
        if !repository.bytes().all(path_ok) || !parts_ok || repository.len() > 255 {
            return Err(wrong(
                "its name should be made of lower-case letters, digits, `.`, `_`, `-` and `/`",
            ));
        }
        if tag.as_ref().is_some_and(|tag| tag.is_empty() || tag.len() > 128 || !tag.bytes().all(tag_ok)) {
            return Err(wrong("its tag should be made of letters, digits, `.`, `_` and `-`"));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// Is it the name of a blob here?
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_one_spelling() {
        let hex = "0".repeat(64);
        for (text, full) in [
            ("web", "docker.io/library/web:latest".to_owned()),
            ("web:1", "docker.io/library/web:1".into()),
            ("me/web:1", "docker.io/me/web:1".into()),
            ("localhost/web", "localhost/web:latest".into()),
            ("127.0.0.1:5000/a/web:1.0", "127.0.0.1:5000/a/web:1.0".into()),
            (&format!("ghcr.io/a/web@sha256:{hex}"), format!("ghcr.io/a/web@sha256:{hex}")),
            (&format!("web:1@sha256:{hex}"), format!("docker.io/library/web:1@sha256:{hex}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), full);
        }
        for text in
            ["", "Web", "../web", "web:", "web:a b", "web@sha256:1", "a//b", "ho st.x/web", "web:1/../x"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
