//! Named plans per API key, in an SQLite database.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde_json::{Value, json};

use crate::ServerError;
use crate::error::{ApiError, ApiResult};
use crate::steering::Asked;

/// One step each from a version to the next; a file's version is in its `user_version`.
const MIGRATIONS: [&str; 2] = [
    "CREATE TABLE profiles (
        scope TEXT NOT NULL,
        name TEXT NOT NULL,
        steering TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        PRIMARY KEY (scope, name)
    ) STRICT;",
    "ALTER TABLE profiles ADD COLUMN user TEXT;
    CREATE UNIQUE INDEX profiles_by_user ON profiles (scope, user) WHERE user IS NOT NULL;",
];
/// Profiles of one key.
const MAX_PROFILES: i64 = 1000;

/// All profiles of a server.
pub(crate) struct Profiles(Mutex<Connection>);

/// A profile as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) steering: Asked,
    /// Whose requests it applies to, where they name nothing else.
    pub(crate) user: Option<String>,
}

impl Profiles {
    /// Opens the database, new where there is none; in memory without a file.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, ServerError> {
        let place = path.map_or("profiles in memory".to_owned(), |path| path.display().to_string());
        let failed = |source| ServerError::Profiles { place: place.clone(), source };
        let mut connection = match path {
            Some(path) => Connection::open(path),
            None => Connection::open_in_memory(),
        }
        .map_err(failed)?;
        let version: i64 =
            connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
        let known = MIGRATIONS.len() as i64;
        if version > known {
            return Err(ServerError::NewerProfiles { place, found: version, known });
        }
        for (at, step) in MIGRATIONS.iter().enumerate().skip(version.max(0) as usize) {
            let migrate = |connection: &mut Connection| {
                let change = connection.transaction()?;
                change.execute_batch(step)?;
                change.pragma_update(None, "user_version", at as i64 + 1)?;
                change.commit()
            };
            migrate(&mut connection).map_err(failed)?;
        }
        Ok(Self(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The profiles of a key, by name.
    pub(crate) fn list(&self, scope: &str) -> ApiResult<Vec<Value>> {
        let connection = self.lock();
        let mut query = connection
            .prepare_cached(
                "SELECT name, steering, user, created, updated FROM profiles WHERE scope = ?1 ORDER BY name",
            )
            .map_err(internal)?;
        let rows = query.query_map([scope], shown).map_err(internal)?;
        rows.collect::<Result<_, _>>().map_err(internal)
    }

    /// One profile.
    pub(crate) fn get(&self, scope: &str, name: &str) -> ApiResult<Value> {
        let query =
            "SELECT name, steering, user, created, updated FROM profiles WHERE scope = ?1 AND name = ?2";
        let found = self.lock().query_row(query, [scope, name], shown).optional().map_err(internal)?;
        found.ok_or_else(|| missing(name))
    }

    /// The plan of a named profile.
    pub(crate) fn steering(&self, scope: &str, name: &str) -> ApiResult<Asked> {
        let query = "SELECT steering FROM profiles WHERE scope = ?1 AND name = ?2";
        self.plan(query, scope, name)?.ok_or_else(|| missing(name))
    }

    /// The plan of a user's profile, if there is one.
    pub(crate) fn of_user(&self, scope: &str, user: &str) -> ApiResult<Option<Asked>> {
        self.plan("SELECT steering FROM profiles WHERE scope = ?1 AND user = ?2", scope, user)
    }

    fn plan(&self, query: &str, scope: &str, key: &str) -> ApiResult<Option<Asked>> {
        let found: Option<String> =
            self.lock().query_row(query, [scope, key], |row| row.get(0)).optional().map_err(internal)?;
        let Some(text) = found else { return Ok(None) };
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| ApiError::internal(format!("a stored profile is damaged: {e}")))?;
        Asked::from_json(&value, "profile").map(Some)
    }

    /// Stores a profile; `replace` says whether there must be one of this name already (or must not).
    pub(crate) fn put(&self, scope: &str, profile: &Profile, replace: Option<bool>) -> ApiResult<Value> {
        let Profile { name, steering, user } = profile;
        {
            let mut connection = self.lock();
            let change = connection.transaction().map_err(internal)?;
            let count = |query: &str, name: &str| -> ApiResult<i64> {
                change.query_row(query, [scope, name], |row| row.get(0)).map_err(internal)
            };
            let there = count("SELECT count(*) FROM profiles WHERE scope = ?1 AND name = ?2", name)? > 0;
            match replace {
                Some(true) if !there => return Err(missing(name)),
                Some(false) if there => {
                    let message = format!("there is a profile {name:?} already");
                    return Err(ApiError::new(axum::http::StatusCode::CONFLICT, message).at("name"));
                }
                _ => {}
            }
            let all = count("SELECT count(*) FROM profiles WHERE scope = ?1 AND name <> ?2", name)?;
            if !there && all >= MAX_PROFILES {
                return Err(ApiError::bad(
                    "name",
                    format!("there are {all} profiles, the limit is {MAX_PROFILES}"),
                ));
            }
            let now = now();
            let stored = change.execute(
                "INSERT INTO profiles (scope, name, steering, user, created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
                 ON CONFLICT (scope, name) DO UPDATE SET steering = ?3, user = ?4, updated = ?5",
                params![scope, name, steering.value().to_string(), user, now],
            );
            stored.map_err(|e| match e.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation) => {
                    ApiError::new(axum::http::StatusCode::CONFLICT, "another profile is this user's")
                        .at("user")
                }
                _ => internal(e),
            })?;
            change.commit().map_err(internal)?;
        }
        self.get(scope, name)
    }

    pub(crate) fn delete(&self, scope: &str, name: &str) -> ApiResult<()> {
        let query = "DELETE FROM profiles WHERE scope = ?1 AND name = ?2";
        match self.lock().execute(query, [scope, name]).map_err(internal)? {
            0 => Err(missing(name)),
            _ => Ok(()),
        }
    }
}

fn shown(row: &Row<'_>) -> rusqlite::Result<Value> {
    let steering: String = row.get(1)?;
    Ok(json!({
        "name": row.get::<_, String>(0)?,
        "steering": serde_json::from_str::<Value>(&steering).unwrap_or_default(),
        "user": row.get::<_, Option<String>>(2)?,
        "created": row.get::<_, i64>(3)?,
        "updated": row.get::<_, i64>(4)?,
    }))
}

fn missing(name: &str) -> ApiError {
    let name: String = name.chars().take(64).collect();
    ApiError::not_found("profile", "profile_not_found", format!("there is no profile {name:?}"))
}

fn internal(error: rusqlite::Error) -> ApiError {
    ApiError::internal(format!("profiles: {error}"))
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn profile(name: &str, scale: &str, user: Option<&str>) -> Profile {
        let steering = Asked::from_pairs(&format!("formality={scale}"), "test").unwrap();
        Profile { name: name.to_owned(), steering, user: user.map(str::to_owned) }
    }

    #[test]
    fn profiles_belong_to_their_key_and_outlive_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("profiles.sqlite");
        let profiles = Profiles::open(Some(&file)).unwrap();
        profiles.put("a", &profile("mine", "1.5", Some("u1")), Some(false)).unwrap();
        drop(profiles);
        let profiles = Profiles::open(Some(&file)).unwrap();
        assert_eq!(profiles.steering("a", "mine").unwrap(), profile("mine", "1.5", None).steering);
        assert_eq!(profiles.steering("b", "mine").unwrap_err().status.as_u16(), 404);
        assert!(profiles.of_user("a", "u1").unwrap().is_some());
        assert!(profiles.of_user("b", "u1").unwrap().is_none());
        assert_eq!(
            profiles.put("a", &profile("mine", "2", None), Some(false)).unwrap_err().status.as_u16(),
            409
        );
        let e = profiles.put("a", &profile("other", "2", Some("u1")), None).unwrap_err();
        assert_eq!((e.status.as_u16(), e.param.as_deref()), (409, Some("user")));
        profiles.put("a", &profile("mine", "2", None), Some(true)).unwrap();
        assert_eq!(profiles.get("a", "mine").unwrap()["steering"]["vectors"][0]["scale"], 2.0);
        profiles.delete("a", "mine").unwrap();
        assert!(profiles.list("a").unwrap().is_empty() && profiles.delete("a", "mine").is_err());
    }

    #[test]
    fn an_old_file_is_migrated_and_a_newer_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("profiles.sqlite");
        let old = Connection::open(&file).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch(
            "INSERT INTO profiles VALUES ('a', 'p', '{\"vectors\":[]}', 1, 2); PRAGMA user_version = 1",
        )
        .unwrap();
        drop(old);
        let profiles = Profiles::open(Some(&file)).unwrap();
        assert_eq!(profiles.get("a", "p").unwrap()["user"], Value::Null);
        profiles.lock().pragma_update(None, "user_version", 99).unwrap();
        drop(profiles);
        assert!(matches!(Profiles::open(Some(&file)), Err(ServerError::NewerProfiles { found: 99, .. })));
    }
}
