//! Files of bbolt, the B+ tree in which etcd keeps everything: what its tools read as a snapshot.
//!
//! A file is pages of 4096 bytes: two copies of the head, the list of free pages (none here), then the pages of each
//! bucket, leaves before branches, and last the page that names the buckets. [`Writer`] writes from the first to the last
//! byte and never goes back. So the head, which stands first and names the last page, has to be known before: whoever
//! writes does so twice, the first time to nowhere. Integers are little-endian, as on all machines that etcd supports.
//!
//! ```text
//! page    id u64, flags u16, count u16, overflow u32 (pages that follow as part of this one), elements, data
//! leaf    flags u32 (1: a bucket), position u32 (of the key, from here), length of the key u32, of the value u32
//! branch  position u32 (of the key, from here), length of the key u32, page u64
//! bucket  page of its root u64, sequence u64: the value under its name
//! head    magic u32, version u32, page size u32, flags u32, bucket u128, free list u64, pages u64, transaction u64,
//!         FNV-1a of all before u64
//! ```

mod reader;

use std::io::{self, Write};

pub use reader::{Bucket, Bytes, ReadError, Reader, Visit};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
const PAGE_HEAD_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
const BUCKET: u32 = 1;
/// Bytes of what a head says, its checksum among them.
const META_BYTES: usize = 64;
/// The first page after the heads and the list of free pages.
const FIRST_PAGE: u64 = 3;

/// What has to be known before a file is written: where its last page is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Layout {
    /// The page that names the buckets.
    root: u64,
    /// Pages of the file.
    pages: u64,
}

impl Layout {
    /// Bytes of the file.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.pages.saturating_mul(4096)
    }
}

/// Writes a file, bucket by bucket.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    next_page: u64,
    /// Names and roots.
    buckets: Vec<(Vec<u8>, u64)>,
}

impl<W: Write> Writer<W> {
    /// Begins a file of this layout; the default one when nobody will read it.
    ///
    /// # Errors
    /// Those of `out`, here and below.
    pub fn begin(mut out: W, layout: Layout) -> io::Result<Self> {
        for page in 0..2u64 {
            out.write_all(&head(page, layout))?;
        }
        out.write_all(&page(2, FREE_LIST, 0, &[]))?;
        Ok(Self { out, next_page: FIRST_PAGE, buckets: Vec::new() })
    }

    /// Begins a bucket, which is to be ended before the next one begins.
    pub fn bucket(&mut self, name: &str) -> BucketWriter<'_, W> {
        let name = name.as_bytes().to_vec();
        BucketWriter { writer: self, name, leaf: Node::default(), children: Vec::new() }
    }

    /// Names the buckets and ends the file; gives its layout and what it was written to.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(mut self) -> io::Result<(Layout, W)> {
        self.buckets.sort();
        let mut names = Node::default();
        for (name, root) in std::mem::take(&mut self.buckets) {
            let mut value = [0u8; 16];
            value[..8].copy_from_slice(&root.to_le_bytes());
            names.push(BUCKET, &name, &value);
        }
        let root = self.write(LEAF, &names)?;
        Ok((Layout { root, pages: self.next_page }, self.out))
    }

    /// Writes a node to the next page, or pages.
    fn write(&mut self, flags: u16, node: &Node) -> io::Result<u64> {
        let id = self.next_page;
        let bytes = page(id, flags, node.elements.len(), &node.body());
        self.out.write_all(&bytes)?;
        self.next_page += u64::try_from(bytes.len() / PAGE_BYTES).unwrap_or(u64::MAX);
        Ok(id)
    }
}

/// Writes one bucket.
#[derive(Debug)]
pub struct BucketWriter<'a, W> {
    writer: &'a mut Writer<W>,
    name: Vec<u8>,
    leaf: Node,
    /// First keys and pages of the leaves that are written.
    children: Vec<(Vec<u8>, u64)>,
}

impl<W: Write> BucketWriter<'_, W> {
    /// Adds a key, which is greater than the one before it, and its value.
    ///
    /// # Errors
    /// Those of the output.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if !self.leaf.fits(key.len() + value.len()) {
            self.write_leaf()?;
        }
        self.leaf.push(0, key, value);
        Ok(())
    }

    fn write_leaf(&mut self) -> io::Result<()> {
        let leaf = std::mem::take(&mut self.leaf);
        let page = self.writer.write(LEAF, &leaf)?;
        self.children.push((leaf.first_key(), page));
        Ok(())
    }

    /// Writes the rest and the branches above.
    ///
    /// # Errors
    /// Those of the output.
    pub fn end(mut self) -> io::Result<()> {
        // A bucket without keys has an empty leaf.
        self.write_leaf()?;
        let mut level = self.children;
        while level.len() > 1 {
            let mut above = Vec::new();
            let mut branch = Node::default();
            for (key, page) in level {
                // A page with one branch only would lead on for ever.
                if branch.elements.len() >= 2 && !branch.fits(key.len()) {
                    let full = std::mem::take(&mut branch);
                    let written = self.writer.write(BRANCH, &full)?;
                    above.push((full.first_key(), written));
                }
                branch.push_branch(&key, page);
            }
            let written = self.writer.write(BRANCH, &branch)?;
            above.push((branch.first_key(), written));
            level = above;
        }
        if let Some((_, root)) = level.pop() {
            self.writer.buckets.push((self.name, root));
        }
        Ok(())
    }
}

/// What is to be written to one page.
#[derive(Default, Debug)]
struct Node {
    elements: Vec<Element>,
    /// Keys and values, one after the other.
    data: Vec<u8>,
}

#[derive(Debug)]
struct Element {
    /// Where its key begins in the data.
    at: usize,
    key: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Leaf { flags: u32, value: usize },
    Branch { page: u64 },
}

impl Node {
    /// Whether one more of this length fits on the page.
    fn fits(&self, bytes: usize) -> bool {
        let elements = (self.elements.len() + 1) * ELEMENT_BYTES;
        self.elements.is_empty()
            || PAGE_HEAD_BYTES + elements + self.data.len() + bytes <= PAGE_BYTES
    }

    fn push(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        let kind = Kind::Leaf { flags, value: value.len() };
        self.elements.push(Element { at: self.data.len(), key: key.len(), kind });
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    fn push_branch(&mut self, key: &[u8], page: u64) {
        let kind = Kind::Branch { page };
        self.elements.push(Element { at: self.data.len(), key: key.len(), kind });
        self.data.extend_from_slice(key);
    }

    fn first_key(&self) -> Vec<u8> {
        let first = self.elements.first();
        first.map(|first| self.data[first.at..first.at + first.key].to_vec()).unwrap_or_default()
    }

    /// Elements and data as they stand behind the page's head.
    fn body(&self) -> Vec<u8> {
        let count = self.elements.len();
        let mut bytes = Vec::with_capacity(count * ELEMENT_BYTES + self.data.len());
        for (index, element) in self.elements.iter().enumerate() {
            let position = length((count - index) * ELEMENT_BYTES + element.at).to_le_bytes();
            let key = length(element.key).to_le_bytes();
            match element.kind {
                Kind::Leaf { flags, value } => {
                    let parts = [flags.to_le_bytes(), position, key, length(value).to_le_bytes()];
                    bytes.extend(parts.as_flattened());
                }
                Kind::Branch { page } => {
                    bytes.extend([position, key].as_flattened());
                    bytes.extend(page.to_le_bytes());
                }
            }
        }
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

/// A length or position in a page: keys and values have a limit far below.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A page, or several in a row when it needs them.
fn page(id: u64, flags: u16, count: usize, body: &[u8]) -> Vec<u8> {
    let pages = (PAGE_HEAD_BYTES + body.len()).div_ceil(PAGE_BYTES);
    let mut bytes = Vec::with_capacity(pages * PAGE_BYTES);
    bytes.extend(id.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    // No page has room for as many.
    bytes.extend(u16::try_from(count).unwrap_or(u16::MAX).to_le_bytes());
    bytes.extend(length(pages - 1).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(pages * PAGE_BYTES, 0);
    bytes
}

/// One of the two heads: that of transaction 2 stands first, as if transaction 1 had changed nothing.
fn head(id: u64, layout: Layout) -> Vec<u8> {
    let mut meta = Vec::new();
    for number in [MAGIC, VERSION, length(PAGE_BYTES), 0] {
        meta.extend(number.to_le_bytes());
    }
    let (sequence, free_list, transaction) = (0u64, 2u64, 2 - id);
    for number in [layout.root, sequence, free_list, layout.pages, transaction] {
        meta.extend(number.to_le_bytes());
    }
    let checksum = fnv_1a(&meta);
    meta.extend(checksum.to_le_bytes());
    page(id, META, 0, &meta)
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Keys and values.
    type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

    fn buckets(file: &[u8]) -> BTreeMap<String, Pairs> {
        let reader = Reader::open(file).unwrap();
        let read = |bucket: &Bucket| {
            let mut pairs = Vec::new();
            let mut visit = |key: &[u8], value: &[u8]| {
                pairs.push((key.to_vec(), value.to_vec()));
                Ok(())
            };
            reader.each(bucket, &mut |_| {}, &mut visit).unwrap();
            (String::from_utf8(bucket.name.clone()).unwrap(), pairs)
        };
        reader.buckets().iter().map(read).collect()
    }

    fn write(layout: Layout, out: Vec<u8>, keys: u32, value_bytes: usize) -> (Layout, Vec<u8>) {
        let mut writer = Writer::begin(out, layout).unwrap();
        let mut many = writer.bucket("many");
        for key in 0..keys {
            many.put(&key.to_be_bytes(), &vec![7; value_bytes]).unwrap();
        }
        many.end().unwrap();
        writer.bucket("empty").end().unwrap();
        writer.end().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for (keys, value_bytes) in [(0, 0), (1, 3), (500, 10), (20_000, 40), (30, 10_000)] {
            let (layout, _) = write(Layout::default(), Vec::new(), keys, value_bytes);
            let (again, file) = write(layout, Vec::new(), keys, value_bytes);
            assert_eq!(again, layout);
            assert_eq!(u64::try_from(file.len()).unwrap(), layout.file_bytes());
            let buckets = buckets(&file);
            assert_eq!(buckets["empty"], []);
            let found = &buckets["many"];
            assert_eq!(found.len(), usize::try_from(keys).unwrap());
            for (key, (found, value)) in (0..keys).zip(found) {
                assert_eq!(*found, key.to_be_bytes());
                assert_eq!(*value, vec![7; value_bytes]);
            }
        }
    }

    /// Everything in the file, or why not. Never a panic, and never for long.
    fn look(file: &[u8]) -> Result<usize, ReadError> {
        let reader = Reader::open(file)?;
        let mut bytes = 0;
        for bucket in reader.buckets() {
            reader.each(bucket, &mut |_| {}, &mut |key, value| {
                bytes += key.len() + value.len();
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    /// A generator good enough for tests (splitmix64).
    fn draw(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    }

    #[test]
    fn whatever_stands_in_a_file_reading_it_ends() {
        let (layout, _) = write(Layout::default(), Vec::new(), 3000, 30);
        let (_, file) = write(layout, Vec::new(), 3000, 30);
        let whole = look(&file).unwrap();
        let mut state = 7;
        let (mut refused, mut changed) = (0, 0);
        for round in 0..3000 {
            let mut bytes = file.clone();
            for _ in 0..=draw(&mut state) % 4 {
                // Mostly where pages say what they are: the rest is keys and values.
                let page = usize::try_from(draw(&mut state)).unwrap() % (file.len() / PAGE_BYTES);
                let within = usize::try_from(draw(&mut state) % 64).unwrap();
                bytes[page * PAGE_BYTES + within] = draw(&mut state).to_le_bytes()[0];
            }
            if round % 5 == 0 {
                let length = usize::try_from(draw(&mut state)).unwrap() % bytes.len();
                bytes.truncate(length);
            }
            match look(&bytes) {
                Ok(found) if found == whole => {}
                Ok(_) => changed += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 1000 && changed > 0, "{refused} {changed}");
        for length in [0, 1, 100, 4096, 8191, 12_288, file.len() - 1] {
            assert!(look(&file[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_no_file_of_bbolt_is_refused_in_words() {
        let (layout, _) = write(Layout::default(), Vec::new(), 500, 10);
        let (_, file) = write(layout, Vec::new(), 500, 10);
        let words = |bytes: &[u8]| look(bytes).unwrap_err().to_string();
        assert!(words(&[7; 20_000]).contains("no database of etcd"));
        assert!(words(&file[..file.len() - PAGE_BYTES]).contains("ends too early"));
        // The first leaf leads to nowhere, says that it is another page, is a branch to itself, is out of order.
        let leaf = 3 * PAGE_BYTES;
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = file.clone();
            change(&mut bytes);
            words(&bytes)
        };
        assert!(with(&|it| it[leaf] = 4).contains("page 3 is damaged: it says"));
        assert!(with(&|it| it[leaf + 8] = 0x40).contains("neither a leaf nor a branch"));
        assert!(with(&|it| it[leaf + 12] = 0xff).contains("longer than the file"));
        assert!(with(&|it| it[leaf + 16 + 7] = 0xff).contains("leads out of it"));
        assert!(with(&|it| it[leaf + 11] = 0xff).contains("more elements than fit"));
        let itself = with(&|it| {
            it[leaf + 8] = 1;
            it[leaf + 24..leaf + 32].copy_from_slice(&3u64.to_le_bytes());
        });
        assert!(itself.contains("two pages lead to it"), "{itself}");
    }

    #[test]
    fn the_newer_head_counts_and_one_is_enough() {
        let (layout, _) = write(Layout::default(), Vec::new(), 5, 10);
        let (_, mut file) = write(layout, Vec::new(), 5, 10);
        let whole = look(&file).unwrap();
        file[20] ^= 1;
        assert_eq!(look(&file).unwrap(), whole);
        file[PAGE_BYTES + 20] ^= 1;
        assert!(matches!(look(&file), Err(ReadError::NotBbolt)));
    }

    #[test]
    fn the_head_is_bbolts() {
        let bytes = head(0, Layout { root: 9, pages: 10 });
        // The published test vector of FNV-1a.
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(&bytes[16..20], &MAGIC.to_le_bytes());
        assert_eq!(bytes[16 + 56..16 + 64], fnv_1a(&bytes[16..16 + 56]).to_le_bytes());
        assert_eq!(bytes.len(), PAGE_BYTES);
    }
}
