// Package verdict is the judgement: a pure function from an incident's evidence
// to verdicts that name who reset a connection, how it is known and how sure
// one can be.
//
// It reads no file, no clock and no kernel, so that the same evidence always
// gives the same verdict. It must never claim more than its findings carry:
// where no rule fits, the verdict is unknown and says what would settle it.
//
// A Selection draws the packets that matter from a window of any size (select.go
// and what it uses). Judge tells a story of each connection (story.go, closing.go),
// joins it with the kernel's events (kernel.go), and asks in turn
//
//   - who sent the RST and how: sender.go, header.go, local.go, passport.go, and
//     silent.go for what failed without one;
//   - what the flows have in common: legs.go, timers.go, crowds.go;
//   - why, and who has to act: causes.go, benign.go, logs.go, party.go;
//   - how sure that is: opinion.go, the one place where confidence is bounded.
package verdict
