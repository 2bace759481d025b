// Package store keeps incidents in a Badger database: its one job is that an
// incident is either there as a whole or not there at all, also after kill -9
// or a power cut. It must not judge, export or interpret what it keeps.
//
// # Layout
//
//	incident/<ulid>                     the marker: list line, generation, length and crc32c of the blocks
//	block/<ulid>/<generation>/chunk/<n> the recorder's chunks, as they were given
//	block/<ulid>/<generation>/index/<n> length and crc32c of each chunk, as JSON
//	block/<ulid>/<generation>/json/<n>  the incident as gzipped JSON, in pieces of at most 256 KiB
//	trace/<trace id>                    the incident's ulid
//	outbox/<signal>/<ulid>              what still has to be delivered (evidence.OutboxEntry)
//
// # Commit
//
// Put writes the blocks first, up to 1 MiB per transaction, each synced: the
// chunks as they come, then the JSON, which can so say what became of the chunks.
// The marker, the trace index and the outbox entries follow in one last
// transaction: its commit is the moment at which the incident begins to exist.
// Putting an id again writes a new generation beside the old one and the marker
// switches over. Blocks that no marker names are what a crash, or a Put that
// failed, left behind; Open removes these and nothing else. Reading checks every
// block.
//
// # Space
//
// Badger frees the space of deleted values only after a compaction has dropped
// their keys. Retain compacts, when something was deleted or level 0 has grown to
// eight tables, and collects. On disk up to one value log file (16 MiB) of garbage
// per file in use may stay.
//
// Badger writes through mmap: on a full disk the process would die of SIGBUS.
// Open and Put look for enough free space first and refuse with ErrNoSpace.
//
// # Cost while idle
//
// Badger's compactors look for work every 50 ms: an open store with nothing to do
// cost 147 ms of processor time and 3,336 context switches in 20 seconds, 0.73 %
// of a core. So none runs; with Retain in their place it is 2 ms and 56 switches,
// 0.01 % (Go 1.26, amd64, two cores). What is left are one timer of 2 seconds and
// two of a minute, which Badger has no option for.
//
// # Memory
//
// Neither Put nor Chunks holds more than 1 MiB of a window, and of the value log's
// mapped files, which count as resident, no more than 2 MiB are held while they
// work and none afterwards. What TestMemory measures around windows of 64 MiB in
// chunks of 700 KiB, beside what the process had before Open: at most 11 MiB of
// anonymous memory, most of it garbage of Badger's encoder, and 7 MiB of mapped
// files, of which 2 are program; 4 to 7 MiB and 3 in the end. For the instant in
// which retention rewrites value log files Badger allocates up to 30 MiB, which are
// given back at once.
package store
