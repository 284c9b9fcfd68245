//! Whose turn it is, where replicas of a relay take turns (a pinned-client priority group, ADR-42).
//!
//! A turn begins with the first message that carries another pin. What was delivered before may
//! still be held by the replica whose turn it was: this one catches up first, and works once
//! nothing is missing any more. After a reconnect the turn goes on under the same pin; whether
//! it still is this replica's is not certain until the server has said so (`Held`).

/// This process's part among the replicas.
pub(super) enum Turn {
    /// Replicas share the work: there are no turns.
    Sharing { began_at: Option<u64>, caught_up: bool },
    /// Another replica works, as far as is known.
    StandingBy,
    /// This replica has the turn, and messages of the one before may be missing.
    CatchingUp { pin: String, began_at: Option<u64>, had_missing: bool },
    /// This replica has the turn.
    Working { pin: String, began_at: Option<u64> },
}

impl Turn {
    /// Before anything has arrived.
    pub(super) fn first(takes_turns: bool) -> Self {
        match takes_turns {
            true => Self::StandingBy,
            false => Self::Sharing { began_at: None, caught_up: false },
        }
    }

    /// A turn that the server knows by `pin`.
    pub(super) fn begun(pin: &str) -> Self {
        Self::CatchingUp { pin: pin.to_owned(), began_at: None, had_missing: false }
    }

    pub(super) fn pin(&self) -> Option<&str> {
        match self {
            Self::CatchingUp { pin, .. } | Self::Working { pin, .. } => Some(pin),
            Self::Sharing { .. } | Self::StandingBy => None,
        }
    }

    pub(super) fn stands_by(&self) -> bool {
        matches!(self, Self::StandingBy)
    }

    /// What is above this sequence was delivered to this process first.
    pub(super) fn began_at(&self) -> Option<u64> {
        match self {
            Self::StandingBy => None,
            Self::Sharing { began_at, .. }
            | Self::CatchingUp { began_at, .. }
            | Self::Working { began_at, .. } => *began_at,
        }
    }

    /// Notes that everything up to the sequence `delivered` may have been delivered to others,
    /// where that is not known yet.
    pub(super) fn began_by(&mut self, delivered: u64) {
        match self {
            Self::StandingBy => {}
            Self::Sharing { began_at, .. }
            | Self::CatchingUp { began_at, .. }
            | Self::Working { began_at, .. } => {
                began_at.get_or_insert(delivered);
            }
        }
    }

    /// Whether nothing of earlier turns is missing.
    pub(super) fn is_caught_up(&self) -> bool {
        matches!(self, Self::Working { .. } | Self::Sharing { caught_up: true, .. })
    }

    /// Whether another replica may have settled a part of what is here.
    pub(super) fn had_missing(&self) -> bool {
        matches!(self, Self::CatchingUp { had_missing: true, .. })
    }

    pub(super) fn note_missing(&mut self) {
        if let Self::CatchingUp { had_missing, .. } = self {
            *had_missing = true;
        }
    }

    /// Nothing of earlier turns is missing.
    pub(super) fn caught_up(&mut self) {
        match self {
            Self::Sharing { caught_up, .. } => *caught_up = true,
            Self::CatchingUp { pin, began_at, .. } => {
                *self = Self::Working { pin: std::mem::take(pin), began_at: *began_at };
            }
            Self::StandingBy | Self::Working { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_caught_up_once_and_keeps_its_pin() {
        let mut turn = Turn::begun("a");
        assert!(!turn.is_caught_up() && !turn.had_missing());
        turn.note_missing();
        turn.began_by(7);
        turn.began_by(9);
        assert!(turn.had_missing());
        turn.caught_up();
        assert!(turn.is_caught_up() && !turn.had_missing());
        assert_eq!((turn.pin(), turn.began_at()), (Some("a"), Some(7)));
    }

    #[test]
    fn without_turns_nobody_stands_by() {
        let mut turn = Turn::first(false);
        turn.caught_up();
        assert!(turn.is_caught_up() && !turn.stands_by() && turn.pin().is_none());
        assert!(Turn::first(true).stands_by());
    }
}
