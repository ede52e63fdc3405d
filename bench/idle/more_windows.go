package main

import "net"

// hasMore is not known on Windows, where no call counts as late.
func hasMore(net.Conn) bool { return false }
