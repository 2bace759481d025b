// Package store keeps incidents in a Badger database: its one job is that an
// incident is either there as a whole or not there at all, also after kill -9
// or a power cut. It must not judge, export or interpret what it keeps.
//
// # Layout
//
//	incident/<ulid>                     the marker: list line, generation, length and crc32c of every block
//	block/<ulid>/<generation>/json/<n>  the incident as gzipped JSON, in pieces of at most 256 KiB
//	block/<ulid>/<generation>/chunk/<n> the recorder's chunks, as they were given
//	trace/<trace id>                    the incident's ulid
//	outbox/<signal>/<ulid>              what still has to be delivered (evidence.OutboxEntry)
//
// # Commit
//
// Put writes the blocks first, some per transaction, each synced. The marker,
// the trace index and the outbox entries follow in one last transaction: its
// commit is the moment at which the incident begins to exist. Putting an id
// again writes a new generation beside the old one and the marker switches over.
// Blocks that no marker names are what a crash, or a Put that failed, left
// behind; Open removes these and nothing else. Reading checks every block.
//
// # Space
//
// Badger frees the space of deleted values only after a compaction has dropped
// their keys, and it compacts only when much was written, which an agent with
// few incidents never reaches. Retain therefore compacts and collects itself.
// On disk up to one value log file (16 MiB) of garbage per file in use may stay.
//
// Badger writes through mmap: on a full disk the process would die of SIGBUS.
// Open and Put look for enough free space first and refuse with ErrNoSpace.
//
// # Memory
//
// Measured by TestMemory after one put of 64 MiB in 256 chunks (Go 1.26, amd64):
// 72 MiB of anonymous memory, 64 of them the chunks that were put, and 75 MiB of
// mapped files. These are page cache: the kernel takes them back under pressure.
package store
