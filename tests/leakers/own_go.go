// Memory of a Go program: argv[1] objects of argv[2] bytes on its heap and a mapping of its own, then "ready".
//
// Prints "block ADDRESS SIZE" of every 50th object, "map ADDRESS SIZE" of the mapping, and "figure NAME BYTES": what the
// runtime says of itself (runtime.MemStats).
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

var kept [][]byte

func main() {
	count, _ := strconv.Atoi(os.Args[1])
	size, _ := strconv.Atoi(os.Args[2])
	for i := 0; i < count; i++ {
		block := make([]byte, size)
		for at := range block {
			block[at] = 1
		}
		kept = append(kept, block)
		if i%50 == 0 {
			fmt.Printf("block %p %d\n", unsafe.Pointer(&block[0]), size)
		}
	}
	own, err := syscall.Mmap(-1, 0, 5<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(err)
	}
	for at := range own {
		own[at] = 1
	}
	fmt.Printf("map %p %d\n", unsafe.Pointer(&own[0]), len(own))
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Printf("figure in_use %d\n", stats.HeapInuse+stats.StackInuse)
	fmt.Printf("figure held %d\n", stats.HeapSys-stats.HeapReleased+stats.StackSys)
	fmt.Printf("figure records %d\n", stats.MSpanSys+stats.MCacheSys+stats.GCSys+stats.OtherSys+stats.BuckHashSys)
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')
	runtime.KeepAlive(kept)
}
