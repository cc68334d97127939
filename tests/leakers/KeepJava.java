// Keeps direct buffers of 256 KiB (KeepJava direct) or arrays of 256 KiB (KeepJava heap). Prints "ready", then adds one
// every 5 ms until it is killed.
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;

public class KeepJava {
    static final List<Object> kept = new ArrayList<>();

    public static void main(String[] words) throws Exception {
        System.out.println("ready");
        for (int number = 0; number < 6000; number++) {
            if (words[0].equals("direct"))
                kept.add(ByteBuffer.allocateDirect(262144));
            else
                kept.add(new byte[262144]);
            Thread.sleep(5);
        }
        Thread.sleep(1000000);
    }
}
