//! What programs have together.

use numerge_server::{ClientInfo, Stalls};

/// Sums over programs that are served now: what those had that have ended is not in them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Together {
    /// Mappings of those whose could be counted; None if there is none.
    pub(crate) mappings: Option<u64>,
    pub(crate) stalls: Stalls,
}

impl<'a> FromIterator<&'a ClientInfo> for Together {
    fn from_iter<T: IntoIterator<Item = &'a ClientInfo>>(clients: T) -> Self {
        clients.into_iter().fold(Self::default(), |all, client| Self {
            mappings: all.mappings.into_iter().chain(client.mappings).reduce(u64::saturating_add),
            stalls: Stalls {
                count: all.stalls.count + client.stalls.count,
                total: all.stalls.total.saturating_add(client.stalls.total),
                longest: all.stalls.longest.max(client.stalls.longest),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use numerge_engine::ProgramCounters;
    use numerge_server::DomainId;

    use super::*;

    fn client(mappings: Option<u64>, count: u64, longest_ms: u64) -> ClientInfo {
        let longest = Duration::from_millis(longest_ms);
        ClientInfo {
            pid: 1,
            user: 1,
            domain: DomainId::Named("both".into()),
            pages_registered: 0,
            counters: ProgramCounters::default(),
            mappings,
            mappings_budget: None,
            stalls: Stalls { count, total: longest, longest },
        }
    }

    #[test]
    fn s6_what_is_known_of_each_adds_up_and_the_longest_stall_is_the_longest() {
        let of = |clients: &[ClientInfo]| clients.iter().collect::<Together>();
        assert_eq!(of(&[]), Together::default());
        assert_eq!(of(&[client(None, 0, 0)]).mappings, None);
        let all = of(&[client(Some(7), 1, 100), client(None, 2, 300), client(Some(8), 3, 200)]);
        let [total, longest] = [600, 300].map(Duration::from_millis);
        assert_eq!((all.mappings, all.stalls), (Some(15), Stalls { count: 6, total, longest }));
    }
}
