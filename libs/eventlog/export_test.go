package eventlog

// WatchEvery is Watch with another interval.
var WatchEvery = watch
