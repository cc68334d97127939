// Grows its heap. Prints "ready", then executes "grow N" on stdin: growAgain keeps N blocks of 4 MiB. Answers "done".
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
