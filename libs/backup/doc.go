// Package backup keeps the copy of a materializer's store in one file, and makes a store of it again.
//
// The file is a tar archive: the files of the store, then what it says of itself, then the checksum of that.
//
//	store/NAME ...          as StateService.Backup sends them
//	manifest.json           Manifest, with size and SHA-256 of each file before it
//	manifest.json.sha256    for sha256sum -c
//
// # Guarantees
//
//   - [Write] makes the whole file or none: it stands under another name until it is complete and on disk. It overwrites nothing unless told to.
//   - [Verify] and [Restore] accept what Write wrote, to the byte: one that was cut off, extended or changed anywhere is refused. That finds accidents.
//     Whoever can write the file can also make another one that is accepted; a checksum kept elsewhere tells.
//   - Restore reads the whole file and finds it good before it writes anything. It writes plain files with safe names, into a directory that is empty,
//     and it does that whole or not at all: the directory is filled under another name first. Where it cannot be renamed, as it is the root of a file
//     system, a file named [Unfinished] stands in it meanwhile, with which no materializer starts.
//
// Nothing here opens a store.
package backup
