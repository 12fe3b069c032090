//! As much of HTTP as who collects metrics needs: one GET a connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a request may take to come, and as long again its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request, its header lines included.
const MOST_BYTES: usize = 8 << 10;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// A connection, of either kind.
pub(crate) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl From<UnixStream> for Connection {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

/// What comes back.
struct Answer {
    status: &'static str,
    kind: &'static str,
    text: String,
}

impl Answer {
    fn refusal(status: &'static str) -> Self {
        Self { status, kind: PLAIN, text: format!("{status}\n") }
    }
}

impl Connection {
    /// Answers the one request, with `text` if it is for that; none: there is nothing any more.
    pub(crate) fn answer(mut self, text: impl FnOnce() -> Option<String>) -> io::Result<()> {
        let line = self.request(Instant::now() + PATIENCE)?;
        let answer = match line.as_deref().map(target) {
            None => Answer::refusal("431 Request Header Fields Too Large"),
            Some(Err(status)) => Answer::refusal(status),
            Some(Ok(())) => match text() {
                Some(text) => Answer { status: "200 OK", kind: OPEN_METRICS, text },
                None => Answer::refusal("503 Service Unavailable"),
            },
        };
        let Answer { status, kind, text } = answer;
        let bytes = text.len();
        let whole = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n\
             Connection: close\r\n\r\n{text}"
        );
        self.write(whole.as_bytes(), Instant::now() + PATIENCE)
    }

    /// The first line of a request, when all of its head is there. None if that is too long.
    fn request(&mut self, until: Instant) -> io::Result<Option<String>> {
        let mut head = Vec::new();
        let mut piece = [0; 1024];
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if head.len() > MOST_BYTES {
                return Ok(None);
            }
            let read = self.read(&mut piece, until)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            head.extend_from_slice(&piece[..read]);
        }
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }

    fn read(&mut self, piece: &mut [u8], until: Instant) -> io::Result<usize> {
        let left = left(until)?;
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.read(piece)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.read(piece)
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let left = left(until)?;
            let written = match self {
                Self::Unix(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(bytes)?
                }
                Self::Tcp(stream) => {
                    stream.set_write_timeout(Some(left))?;
                    stream.write(bytes)?
                }
            };
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// What time is left, which is some.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Whether a request's first line asks for the metrics; else the status that says what it is.
fn target(line: &str) -> Result<(), &'static str> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("400 Bad Request");
    };
    if !version.starts_with("HTTP/1.") {
        return Err("505 HTTP Version Not Supported");
    }
    if method != "GET" {
        return Err("405 Method Not Allowed");
    }
    match target.split('?').next() {
        Some("/metrics") => Ok(()),
        _ => Err("404 Not Found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a request is answered with, and how often the text was asked for.
    fn ask(request: &[u8]) -> (String, usize) {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut times = 0;
        here.write_all(request).unwrap();
        here.shutdown(std::net::Shutdown::Write).unwrap();
        let done = Connection::from(there).answer(|| {
            times += 1;
            Some("the text\n".into())
        });
        let mut answer = String::new();
        here.read_to_string(&mut answer).unwrap();
        assert_eq!(done.is_ok(), !answer.is_empty());
        (answer, times)
    }

    #[test]
    fn only_what_asks_for_metrics_is_given_them() {
        let (answer, times) = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("Content-Length: 9\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthe text\n"), "{answer}");
        assert_eq!(times, 1);
        for (request, status) in [
            (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], "405"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"GET /metricsx HTTP/1.1\r\n\r\n", "404"),
            (b"GET /metrics HTTP/2.0\r\n\r\n", "505"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
            (b"GET  /metrics HTTP/1.1\r\n\r\n", "400"),
            (b"\xff\xfe\r\n\r\n", "400"),
        ] {
            let (answer, times) = ask(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert_eq!(times, 0);
        }
    }

    #[test]
    fn a_request_has_a_limit() {
        let mut long = b"GET /metrics HTTP/1.1\r\n".to_vec();
        long.resize(MOST_BYTES + 1, b'x');
        let (answer, times) = ask(&long);
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert_eq!((ask(b"GET /metrics HTTP/1.1\r\n"), times), ((String::new(), 0), 0));
    }

    #[test]
    fn who_says_nothing_is_not_waited_for_for_ever() {
        let (here, there) = UnixStream::pair().unwrap();
        let error = Connection::from(there).answer(|| None).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        drop(here);
    }
}
