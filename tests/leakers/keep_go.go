// Keeps mappings of 64 KiB in a map (keep_go mapped), or slices of 1 MiB (keep_go heap). Prints "ready", then adds some
// every 5 ms until it is killed.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

var mapped = map[int][]byte{}
var kept [][]byte

func main() {
	fmt.Println("ready")
	for number := 0; number < 20000; number++ {
		if os.Args[1] == "mapped" {
			block, err := syscall.Mmap(-1, 0, 65536, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
			if err != nil {
				panic(err)
			}
			block[0] = 1
			mapped[number] = block
		} else {
			kept = append(kept, make([]byte, 1<<20))
		}
		time.Sleep(5 * time.Millisecond)
	}
	select {}
}
