//! Reads a file of bbolt, page by page and in the order of its keys. Nothing in the file is believed: no page is looked
//! at twice, no position leads out of its page, and no more memory is taken than the largest page has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::{
    BRANCH, BUCKET, ELEMENT_BYTES, LEAF, MAGIC, META, META_BYTES, PAGE_HEAD_BYTES, VERSION, fnv_1a,
};

/// Smallest and largest pages that bbolt makes: those of the machine's memory.
const PAGE_BYTES_MIN: usize = 1024;
const PAGE_BYTES_MAX: usize = 64 << 10;
/// The longest row of pages that are one node: a value of etcd has a few megabytes.
const NODE_BYTES_MAX: u64 = 256 << 20;
/// Deeper than any tree that fits on a disk.
const DEPTH_MAX: usize = 64;
/// Bytes of what a bucket has for a value: its root, a sequence.
const BUCKET_BYTES: usize = 16;

/// What is read from: a file, or bytes in memory.
pub trait Bytes {
    /// How many there are.
    ///
    /// # Errors
    /// Those of the file.
    fn length(&self) -> io::Result<u64>;

    /// Fills `into` with those from `at` on.
    ///
    /// # Errors
    /// Those of the file, and when it ends before.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

impl Bytes for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, at)
    }
}

impl Bytes for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.len()).unwrap_or(u64::MAX))
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Why a file cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// No head is intact: not a file of bbolt.
    NotBbolt,
    /// The file has fewer pages than its head says.
    Truncated {
        /// Bytes that the head says.
        expected: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// A page is not what it must be.
    Page {
        /// Its number.
        page: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The system refuses.
    Io(io::Error),
    /// Whoever looks at the keys refuses one.
    Refused(String),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotBbolt => {
                f.write_str("it is no database of etcd: neither of its two heads is one of bbolt")
            }
            Self::Truncated { expected, found } => {
                write!(
                    f,
                    "it ends too early: its head says {expected} bytes, and {found} are there"
                )
            }
            Self::Page { page, problem } => write!(f, "page {page} is damaged: {problem}"),
            Self::Io(error) => write!(f, "it cannot be read: {error}"),
            Self::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ReadError {}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Looks at a key and its value, and may refuse them.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> Result<(), String> + 'v;

/// As [`Visit`], with whether it is a bucket.
type Look<'v> = dyn FnMut(&[u8], &[u8], bool) -> Result<(), String> + 'v;

/// Where the keys of a bucket are.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Root {
    Page(u64),
    /// A small bucket stands within the page that names it.
    Inline(Vec<u8>),
}

/// A bucket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: Vec<u8>,
    root: Root,
}

/// An opened file.
#[derive(Debug)]
pub struct Reader<'a, B: Bytes + ?Sized> {
    bytes: &'a B,
    page_bytes: usize,
    pages: u64,
    buckets: Vec<Bucket>,
}

/// What one of the heads says.
struct Head {
    page_bytes: usize,
    root: u64,
    pages: u64,
    transaction: u64,
}

impl<'a, B: Bytes + ?Sized> Reader<'a, B> {
    /// Reads the newer of the two heads, and the names of the buckets.
    ///
    /// # Errors
    /// Everything by which a file is no whole one of bbolt, as far as has been looked at.
    pub fn open(bytes: &'a B) -> Result<Self, ReadError> {
        let length = bytes.length()?;
        let head = newest_head(bytes, length)?.ok_or(ReadError::NotBbolt)?;
        let page_bytes = u64::try_from(head.page_bytes).unwrap_or(u64::MAX);
        let expected = head.pages.saturating_mul(page_bytes);
        if expected > length {
            return Err(ReadError::Truncated { expected, found: length });
        }
        let mut reader =
            Self { bytes, page_bytes: head.page_bytes, pages: head.pages, buckets: Vec::new() };
        let mut buckets = Vec::new();
        let root = Bucket { name: Vec::new(), root: Root::Page(head.root) };
        reader.walk(&root, &mut |_| {}, &mut |key, value, is_bucket| {
            let page = value.get(..8).and_then(|page| page.try_into().ok()).map(u64::from_le_bytes);
            match page {
                Some(page) if is_bucket && value.len() >= BUCKET_BYTES => {
                    let root = if page == 0 {
                        Root::Inline(value[BUCKET_BYTES..].to_vec())
                    } else {
                        Root::Page(page)
                    };
                    buckets.push(Bucket { name: key.to_vec(), root });
                    Ok(())
                }
                _ => Err("it has a key outside of all buckets".to_owned()),
            }
        })?;
        reader.buckets = buckets;
        Ok(reader)
    }

    /// Bytes of a page.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Bytes that the file has by its head; there may be more.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.pages.saturating_mul(u64::try_from(self.page_bytes).unwrap_or(u64::MAX))
    }

    /// The buckets, in the order of their names.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The bucket of this name.
    #[must_use]
    pub fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.iter().find(|bucket| bucket.name == name.as_bytes())
    }

    /// Visits all keys of a bucket in their order, with their values. `read` hears how many bytes were read.
    ///
    /// # Errors
    /// A page that is not what it must be, and what `visit` refuses.
    pub fn each(
        &self,
        bucket: &Bucket,
        read: &mut dyn FnMut(u64),
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        self.walk(bucket, read, &mut |key, value, is_bucket| {
            if is_bucket {
                // etcd has none.
                return Err("a bucket stands within another one".to_owned());
            }
            visit(key, value)
        })
    }

    fn walk(
        &self,
        bucket: &Bucket,
        read: &mut dyn FnMut(u64),
        visit: &mut Look<'_>,
    ) -> Result<(), ReadError> {
        let mut walk = Walk { reader: self, seen: Seen::default(), last: None, read, visit };
        match &bucket.root {
            Root::Page(page) => walk.below(*page, 0),
            Root::Inline(bytes) => {
                let node = Node::parse(bytes, 0)?;
                if node.is_branch {
                    return Err(ReadError::Page {
                        page: 0,
                        problem: "a small bucket has branches",
                    });
                }
                walk.leaf(&node)
            }
        }
    }

    /// Reads a page, and those that follow as a part of it.
    fn node_bytes(&self, page: u64) -> Result<Vec<u8>, ReadError> {
        let wrong = |problem| ReadError::Page { page, problem };
        if page < 2 || page >= self.pages {
            return Err(wrong("it is none of the file's"));
        }
        let page_bytes = u64::try_from(self.page_bytes).unwrap_or(u64::MAX);
        let at = page.saturating_mul(page_bytes);
        let mut bytes = vec![0; self.page_bytes];
        self.bytes.read_at(at, &mut bytes)?;
        let overflow = u64::from(number_u32(&bytes, 12).unwrap_or(u32::MAX));
        if number_u64(&bytes, 0) != Some(page) {
            return Err(wrong("it says that it is another one"));
        }
        if overflow > 0 {
            let length = (overflow + 1).saturating_mul(page_bytes);
            if overflow >= self.pages - page || length > NODE_BYTES_MAX {
                return Err(wrong("it is longer than the file"));
            }
            bytes.resize(usize::try_from(length).unwrap_or(self.page_bytes), 0);
            self.bytes.read_at(at + page_bytes, &mut bytes[self.page_bytes..])?;
        }
        Ok(bytes)
    }
}

fn newest_head<B: Bytes + ?Sized>(bytes: &B, length: u64) -> Result<Option<Head>, ReadError> {
    let mut newest: Option<Head> = None;
    let mut offsets = vec![0];
    // The second one stands where the second page begins, wherever that is.
    let mut at = PAGE_BYTES_MIN;
    while at <= PAGE_BYTES_MAX {
        offsets.push(at);
        at *= 2;
    }
    for at in offsets {
        let offset = u64::try_from(at).unwrap_or(u64::MAX);
        let mut page = [0u8; PAGE_HEAD_BYTES + META_BYTES];
        if offset + u64::try_from(page.len()).unwrap_or(0) > length {
            continue;
        }
        bytes.read_at(offset, &mut page)?;
        let Some(head) = parse_head(&page) else { continue };
        let is_in_place = at == 0 || at == head.page_bytes;
        if is_in_place && newest.as_ref().is_none_or(|it| it.transaction < head.transaction) {
            newest = Some(head);
        }
    }
    Ok(newest)
}

fn parse_head(page: &[u8]) -> Option<Head> {
    let flags = page.get(8..10)?;
    let meta = page.get(PAGE_HEAD_BYTES..PAGE_HEAD_BYTES + META_BYTES)?;
    let is_head = flags == META.to_le_bytes()
        && number_u32(meta, 0)? == MAGIC
        && number_u32(meta, 4)? == VERSION
        && number_u64(meta, 56)? == fnv_1a(&meta[..56]);
    let page_bytes = usize::try_from(number_u32(meta, 8)?).ok()?;
    let is_size =
        page_bytes.is_power_of_two() && (PAGE_BYTES_MIN..=PAGE_BYTES_MAX).contains(&page_bytes);
    (is_head && is_size).then_some(Head {
        page_bytes,
        root: number_u64(meta, 16)?,
        pages: number_u64(meta, 40)?,
        transaction: number_u64(meta, 48)?,
    })
}

fn number_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn number_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// The pages that were looked at: a bit each.
#[derive(Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// Whether this page is new.
    fn insert(&mut self, page: u64) -> bool {
        let word = usize::try_from(page / 64).unwrap_or(usize::MAX);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let bit = 1 << (page % 64);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }
}

/// A node whose elements can be taken out.
struct Node<'a> {
    bytes: &'a [u8],
    page: u64,
    is_branch: bool,
    count: usize,
}

impl<'a> Node<'a> {
    fn parse(bytes: &'a [u8], page: u64) -> Result<Self, ReadError> {
        let wrong = |problem| ReadError::Page { page, problem };
        let head = bytes.get(..PAGE_HEAD_BYTES).ok_or_else(|| wrong("it has no head"))?;
        let flags = u16::from_le_bytes([head[8], head[9]]);
        let count = usize::from(u16::from_le_bytes([head[10], head[11]]));
        if flags != LEAF && flags != BRANCH {
            return Err(wrong("it is neither a leaf nor a branch"));
        }
        if PAGE_HEAD_BYTES + count * ELEMENT_BYTES > bytes.len() {
            return Err(wrong("it has more elements than fit"));
        }
        Ok(Self { bytes, page, is_branch: flags == BRANCH, count })
    }

    fn numbers(&self, index: usize) -> [u32; 4] {
        let at = PAGE_HEAD_BYTES + index * ELEMENT_BYTES;
        [0, 4, 8, 12].map(|offset| number_u32(self.bytes, at + offset).unwrap_or(u32::MAX))
    }

    /// Bytes at a position that counts from the element.
    fn data(&self, index: usize, position: u64, length: u32) -> Result<&'a [u8], ReadError> {
        let at = PAGE_HEAD_BYTES + index * ELEMENT_BYTES;
        let from = usize::try_from(position).ok().and_then(|position| at.checked_add(position));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = from.and_then(|from| self.bytes.get(from..)?.get(..length));
        data.ok_or(ReadError::Page { page: self.page, problem: "an element leads out of it" })
    }
}

/// On the way through a bucket.
struct Walk<'a, B: Bytes + ?Sized> {
    reader: &'a Reader<'a, B>,
    seen: Seen,
    last: Option<Vec<u8>>,
    read: &'a mut dyn FnMut(u64),
    visit: &'a mut Look<'a>,
}

impl<B: Bytes + ?Sized> Walk<'_, B> {
    fn below(&mut self, page: u64, depth: usize) -> Result<(), ReadError> {
        let wrong = |problem| ReadError::Page { page, problem };
        if depth > DEPTH_MAX {
            return Err(wrong("the tree is deeper than any is"));
        }
        // In the file, before anything is remembered of it.
        let bytes = self.reader.node_bytes(page)?;
        if !self.seen.insert(page) {
            return Err(wrong("two pages lead to it"));
        }
        (self.read)(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let node = Node::parse(&bytes, page)?;
        if !node.is_branch {
            return self.leaf(&node);
        }
        let children: Vec<u64> = (0..node.count)
            .map(|index| {
                let [_, _, low, high] = node.numbers(index);
                u64::from(low) | u64::from(high) << 32
            })
            .collect();
        drop(bytes);
        children.into_iter().try_for_each(|child| self.below(child, depth + 1))
    }

    fn leaf(&mut self, node: &Node<'_>) -> Result<(), ReadError> {
        let page = node.page;
        for index in 0..node.count {
            let [flags, position, key_bytes, value_bytes] = node.numbers(index);
            let key = node.data(index, u64::from(position), key_bytes)?;
            let value_at = u64::from(position) + u64::from(key_bytes);
            let value = node.data(index, value_at, value_bytes)?;
            if self.last.as_deref().is_some_and(|last| last >= key) {
                return Err(ReadError::Page { page, problem: "its keys are out of order" });
            }
            (self.visit)(key, value, flags & BUCKET != 0).map_err(ReadError::Refused)?;
            let last = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
        }
        Ok(())
    }
}
