// Grows its heap: says "ready", then obeys "grow N" on stdin: N blocks of 4 MiB, kept, by growAgain; answers "done".
package main

import (
	"bufio"
	"fmt"
	"os"
)

var kept [][]byte

//go:noinline
func growOnce(size int) {
	kept = append(kept, make([]byte, size))
}

//go:noinline
func growAgain(count int) {
	for i := 0; i < count; i++ {
		growOnce(4 << 20)
	}
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	fmt.Println("ready")
	for lines.Scan() {
		var count int
		fmt.Sscanf(lines.Text(), "grow %d", &count)
		growAgain(count)
		fmt.Println("done")
	}
}
